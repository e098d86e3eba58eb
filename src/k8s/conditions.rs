//! The conditions in the status of an operator's object (`metav1.Condition`). Pure.

use serde::Deserialize;
use serde_json::Value;

/// One condition, as far as it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    pub reason: String,
    pub message: String,
    /// The generation that it is about; 0 where the operator does not say.
    pub observed_generation: i64,
}

impl Condition {
    /// The condition of this type in the status of the object; none if it has none, or one that cannot be read.
    pub(crate) fn of(object: &Value, type_: &str) -> Option<Self> {
        let conditions = object["status"]["conditions"].as_array()?.iter();
        let mut conditions = conditions.filter_map(|it| Condition::deserialize(it).ok());
        conditions.find(|it| it.type_ == type_)
    }

    /// Whether it is of this generation or a later one; unknown without one.
    pub(crate) fn is_of(&self, generation: i64) -> Option<bool> {
        (self.observed_generation != 0).then_some(self.observed_generation >= generation)
    }

    /// Its reason and message.
    pub(crate) fn why(&self) -> String {
        match (self.reason.as_str(), self.message.as_str()) {
            ("", message) => message.to_owned(),
            (reason, "") => reason.to_owned(),
            (reason, message) => format!("{reason}: {message}"),
        }
    }
}

/// Whether the object has this condition with the status `True`.
pub(crate) fn is_true(object: &Value, type_: &str) -> bool {
    Condition::of(object, type_).is_some_and(|it| it.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(conditions: &str) -> Value {
        serde_yaml_ng::from_str(&format!("status: {{conditions: [{conditions}]}}")).expect("is one")
    }

    #[test]
    fn a_condition_is_found_by_its_type() {
        let found = object("{type: Ready, status: 'False', reason: BuildFailed, message: no file}");
        let ready = Condition::of(&found, "Ready").expect("is there");
        assert_eq!(
            (ready.status.as_str(), ready.why().as_str()),
            ("False", "BuildFailed: no file")
        );
        assert!(!is_true(&found, "Ready") && Condition::of(&found, "Stalled").is_none());
        assert!(is_true(&object("{type: Ready, status: 'True'}"), "Ready"));
        assert!(!is_true(&Value::Null, "Ready"));
    }

    #[test]
    fn a_condition_may_say_its_generation() {
        let of = |yaml: &str| Condition::of(&object(yaml), "Ready").expect("is there").is_of(3);
        assert_eq!(of("{type: Ready, observedGeneration: 2}"), Some(false));
        assert_eq!(of("{type: Ready, observedGeneration: 3}"), Some(true));
        assert_eq!(of("{type: Ready}"), None);
    }
}
