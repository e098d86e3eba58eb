//! Which requests this process has written a receipt for that says that their outcome is unknown. A client may resend
//! such a request forever. Knows nothing of receipts, and makes no calls.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::ledger::record::RequestMetadata;

/// How many requests are remembered; then the oldest one is forgotten.
const MAX_REMEMBERED: usize = 512;

#[derive(Default)]
pub(super) struct UnknownOutcomes(Mutex<VecDeque<String>>);

impl UnknownOutcomes {
    pub(super) fn contains(&self, request: &RequestMetadata) -> bool {
        self.lock().contains(&key(request))
    }

    pub(super) fn insert(&self, request: &RequestMetadata) {
        let mut all = self.lock();
        if all.len() == MAX_REMEMBERED {
            all.pop_front();
        }
        all.push_back(key(request));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id is unique in its namespace, and while its record lasts.
fn key(request: &RequestMetadata) -> String {
    format!("{}/{} {}", request.namespace(), request.id, request.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(namespace: &str, digest: usize) -> RequestMetadata {
        let mut request = RequestMetadata::example();
        request.target.namespace = namespace.to_owned();
        RequestMetadata { digest: digest.to_string(), ..request }
    }

    #[test]
    fn a_request_is_known_by_its_namespace_and_its_payload_and_a_bounded_number_is_remembered() {
        let outcomes = UnknownOutcomes::default();
        outcomes.insert(&request("shop", 0));
        assert!(outcomes.contains(&request("shop", 0)));
        assert!(!outcomes.contains(&request("pay", 0)) && !outcomes.contains(&request("shop", 1)));
        (1..=MAX_REMEMBERED).for_each(|digest| outcomes.insert(&request("shop", digest)));
        assert!(!outcomes.contains(&request("shop", 0)));
        assert!(outcomes.contains(&request("shop", MAX_REMEMBERED)));
    }
}
