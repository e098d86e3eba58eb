//! Requests and limits that a request sets on named containers, of a pod template or of a pod. Must not depend on one
//! action.

use json_patch::PatchOperation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        ResourceChange,
        shared::containers::{self, Container},
    },
    contract::{
        error::ActionError,
        names::ObjectName,
        quantity::Quantity,
        response::{Change, Target},
    },
    k8s::resources::{Amount, AmountField},
};

/// The parameter that has them.
const PARAMETER: &str = "resources";

/// The requests and limits of one container; what is left out stays as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 2))]
pub struct ContainerAmounts {
    /// The container or init container.
    pub container: ObjectName,
    /// The CPU it is scheduled with, for example `500m` or `2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_request: Option<Quantity>,
    /// The memory it is scheduled with, for example `512Mi` or `1.5Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_request: Option<Quantity>,
    /// The most CPU it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<Quantity>,
    /// The most memory it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Quantity>,
}

/// An amount to set, which differs from the one that was read.
pub(crate) struct AmountChange<'a> {
    container: &'a ObjectName,
    found: Container<'a>,
    field: AmountField,
    to: Quantity,
}

impl ContainerAmounts {
    /// The amounts that are set.
    fn amounts(&self) -> impl Iterator<Item = (AmountField, Quantity)> + use<> {
        let all = [
            (AmountField::CpuRequest, self.cpu_request),
            (AmountField::MemoryRequest, self.memory_request),
            (AmountField::CpuLimit, self.cpu_limit),
            (AmountField::MemoryLimit, self.memory_limit),
        ];
        all.into_iter().filter_map(|(field, amount)| Some((field, amount?)))
    }
}

fn names(all: &[ContainerAmounts]) -> impl Iterator<Item = &ObjectName> {
    all.iter().map(|it| &it.container)
}

fn invalid(number: usize, field: AmountField, what: &str) -> ActionError {
    let name = field.name().replace(' ', "_");
    ActionError::invalid_field(format!("parameters.{PARAMETER}[{number}].{name}"), what)
}

/// Checks what can be checked without the containers.
///
/// # Errors
/// [`Code::InvalidRequest`](crate::contract::error::Code::InvalidRequest) with the wrong entry.
pub(crate) fn check(all: &[ContainerAmounts]) -> Result<(), ActionError> {
    containers::check_each_once(PARAMETER, names(all))?;
    for (number, entry) in all.iter().enumerate() {
        if entry.amounts().next().is_none() {
            let what = "missing: give at least one of cpu_request, memory_request, cpu_limit and memory_limit";
            return Err(invalid(number, AmountField::MemoryLimit, what));
        }
        for (field, amount) in entry.amounts() {
            match field.resource() {
                "cpu" if !amount.is_in_thousandths() => {
                    return Err(invalid(number, field, "must be a multiple of 1m"));
                }
                "memory" if !amount.is_whole() => {
                    return Err(invalid(number, field, "must be a whole number of bytes"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// What is to be set in this pod or pod template; empty if all of it is set already.
///
/// # Errors
/// [`Code::InvalidRequest`](crate::contract::error::Code::InvalidRequest) with the entry of a container that is not
/// there, or whose request would be above its limit.
pub(crate) fn changes<'a>(
    target: &Target,
    pod: &'a Value,
    all: &'a [ContainerAmounts],
) -> Result<Vec<AmountChange<'a>>, ActionError> {
    let found = containers::find(target, pod, PARAMETER, names(all))?;
    let mut changes = Vec::new();
    for (number, (entry, found)) in all.iter().zip(found).enumerate() {
        check_order(number, entry, found.value)?;
        let differs = |field: AmountField, to| {
            !field.is_set(found.value) || field.of(found.value) != Some(to)
        };
        let amounts = entry.amounts().filter(|(field, to)| differs(*field, *to));
        changes.extend(amounts.map(|(field, to)| AmountChange {
            container: &entry.container,
            found: found.clone(),
            field,
            to,
        }));
    }
    Ok(changes)
}

/// The API server refuses a request above its limit.
fn check_order(number: usize, entry: &ContainerAmounts, found: &Value) -> Result<(), ActionError> {
    let pairs = [
        (AmountField::CpuRequest, entry.cpu_request, AmountField::CpuLimit, entry.cpu_limit),
        (
            AmountField::MemoryRequest,
            entry.memory_request,
            AmountField::MemoryLimit,
            entry.memory_limit,
        ),
    ];
    for (request_field, request, limit_field, limit) in pairs {
        let now = |field: AmountField| field.is_set(found).then(|| field.of(found)).flatten();
        let then = (request.or_else(|| now(request_field)), limit.or_else(|| now(limit_field)));
        let (Some(amount), Some(most)) = then else { continue };
        if amount <= most || (request.is_none() && limit.is_none()) {
            continue;
        }
        let (request_name, limit_name) = (request_field.name(), limit_field.name());
        let detail = format!(
            "the {request_name} of container '{}' would be {amount}, above its {limit_name} of {most}",
            entry.container
        );
        let field = if request.is_some() { request_field } else { limit_field };
        return Err(invalid(number, field, &detail)
            .with_hint(format!("set {request_name} and {limit_name} in one request")));
    }
    Ok(())
}

/// The operations that set them, in an object whose pod spec is at `spec`. A map that is missing is created once.
pub(crate) fn operations(changes: &[AmountChange], spec: &[&str]) -> Vec<PatchOperation> {
    let mut operations = Vec::new();
    for change in changes {
        for operation in change.found.set(spec, &change.field.path(), &change.value()) {
            if !operations.contains(&operation) {
                operations.push(operation);
            }
        }
    }
    operations
}

/// For example `memory limit of 'app' to 1Gi, cpu request of 'app' to 500m`.
pub(crate) fn describe(all: &[ContainerAmounts]) -> String {
    let each = all.iter().flat_map(|entry| {
        let container = &entry.container;
        entry.amounts().map(move |(field, to)| format!("{} of '{container}' to {to}", field.name()))
    });
    each.collect::<Vec<_>>().join(", ")
}

/// The amounts that the containers are to have.
pub(crate) fn wanted(all: &[ContainerAmounts]) -> Vec<Amount> {
    let each = all.iter().flat_map(|entry| {
        entry.amounts().map(|(field, value)| Amount {
            container: entry.container.to_string(),
            field,
            value,
        })
    });
    each.collect()
}

impl AmountChange<'_> {
    fn value(&self) -> Value {
        self.to.to_string().into()
    }

    /// The change in an object whose pod spec is at `spec`.
    pub(crate) fn change(&self, spec: &[&str]) -> Change {
        self.found.change(spec, &self.field.path(), &self.value())
    }

    /// What the policy judges.
    pub(crate) fn resource_change(&self) -> ResourceChange {
        ResourceChange {
            container: self.container.to_string(),
            field: self.field,
            from: self.field.of(self.found.value),
            to: self.to,
        }
    }
}
