//! The containers that a request names, in the spec of a pod or of a pod template. Must not depend on one action.

use json_patch::PatchOperation;
use serde_json::{Value, json};

use crate::{
    contract::{
        error::{ActionError, Code},
        names::ObjectName,
        response::{Change, Target},
    },
    k8s::conditional_patch::{add, test},
};

/// The most containers of one request.
pub(crate) const MAX_CONTAINERS: usize = 20;

/// The lists of a pod's containers that a request may name.
const LISTS: [&str; 2] = ["containers", "initContainers"];

/// A container as it was read.
#[derive(Clone)]
pub(crate) struct Container<'a> {
    pub list: &'static str,
    pub index: usize,
    pub value: &'a Value,
}

/// Checks that a parameter of this name has 1 to [`MAX_CONTAINERS`] entries, each of another container.
///
/// # Errors
/// [`Code::InvalidRequest`] with the wrong entry.
pub(crate) fn check_each_once<'a>(
    parameter: &str,
    names: impl Iterator<Item = &'a ObjectName>,
) -> Result<(), ActionError> {
    let names: Vec<_> = names.collect();
    if !(1..=MAX_CONTAINERS).contains(&names.len()) {
        let what = format!("must have 1 to {MAX_CONTAINERS} entries, but has {}", names.len());
        return Err(ActionError::invalid_field(format!("parameters.{parameter}"), what));
    }
    for (number, name) in names.iter().enumerate() {
        if names[..number].contains(name) {
            let field = format!("parameters.{parameter}[{number}].container");
            return Err(ActionError::invalid_field(
                &field,
                "names the same container as an entry before",
            ));
        }
    }
    Ok(())
}

/// The containers of these names in a pod template or a pod, in the order of the names.
///
/// # Errors
/// [`Code::InvalidRequest`] with the entry of a container that is not there.
pub(crate) fn find<'a, 'b>(
    target: &Target,
    pod: &'a Value,
    parameter: &str,
    names: impl Iterator<Item = &'b ObjectName>,
) -> Result<Vec<Container<'a>>, ActionError> {
    let named = |name: &str| all(pod).find(|it| it.value["name"] == name);
    let found = names.enumerate().map(|(number, name)| {
        named(name).ok_or_else(|| {
            let known: Vec<_> = all(pod).filter_map(|it| it.value["name"].as_str()).collect();
            let detail = format!("{target} has no container '{name}'");
            ActionError::new(Code::InvalidRequest, detail)
                .with_field(format!("parameters.{parameter}[{number}].container"))
                .with_hint(format!("its containers are {}", known.join(", ")))
        })
    });
    found.collect()
}

fn all(pod: &Value) -> impl Iterator<Item = Container<'_>> {
    LISTS.into_iter().flat_map(move |list| {
        let containers = pod["spec"][list].as_array().into_iter().flatten().enumerate();
        containers.map(move |(index, value)| Container { list, index, value })
    })
}

impl Container<'_> {
    /// The value at this path within it; null if there is none.
    pub(crate) fn get(&self, field: &[&str]) -> &Value {
        field.iter().fold(self.value, |value, name| &value[*name])
    }

    /// Sets the value at this path within it, in an object whose pod spec is at `spec`: the tests that the index still
    /// names this container and that the value is the one that was read, and the change, with the maps that are
    /// missing.
    pub(crate) fn set(&self, spec: &[&str], field: &[&str], to: &Value) -> Vec<PatchOperation> {
        let parents = (1..field.len()).map(|depth| &field[..depth]);
        let missing: Vec<_> = parents.filter(|parent| self.get(parent).is_null()).collect();
        let path = |field: &[&str]| self.path(spec, field);
        let name = test(&as_strs(&path(&["name"])), self.value["name"].clone());
        // What is replaced must be as it was read: a pod may have no generation that shows it.
        let replaced = missing.first().copied().unwrap_or(field);
        let read = test(&as_strs(&path(replaced)), self.get(replaced).clone());
        let maps = missing.iter().map(|parent| add(&as_strs(&path(parent)), json!({})));
        let value = add(&as_strs(&path(field)), to.clone());
        [name, read].into_iter().chain(maps).chain([value]).collect()
    }

    /// The change that [`Container::set`] makes.
    pub(crate) fn change(&self, spec: &[&str], field: &[&str], to: &Value) -> Change {
        let path = format!("/{}", self.path(spec, field).join("/"));
        Change { path, from: self.get(field).clone(), to: to.clone() }
    }

    fn path(&self, spec: &[&str], field: &[&str]) -> Vec<String> {
        let index = self.index.to_string();
        [spec, &[self.list, &*index], field].concat().into_iter().map(str::to_owned).collect()
    }
}

fn as_strs(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}
