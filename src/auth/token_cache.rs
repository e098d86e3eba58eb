//! A cache of valid tokens, so that not every request needs a TokenReview. Authorization is not cached.
//!
//! It contains only the SHA-256 of tokens, and only of valid ones, so unauthenticated clients cannot fill it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{auth::token_review::Identity, contract::digest::sha256};

/// How long a TokenReview is cached: a revoked token works no longer than this.
const TTL: Duration = Duration::from_secs(10);

/// Maximum number of cached tokens.
const MAX_TOKENS: usize = 1024;

/// The hash of each token, with its user and the time of its review.
#[derive(Default)]
pub(crate) struct TokenCache(Mutex<HashMap<String, (Identity, Instant)>>);

impl TokenCache {
    /// The user of a cached token.
    pub(crate) fn find(&self, token: &str, now: Instant) -> Option<Identity> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (identity, at) = known.get(&sha256(token.as_bytes()))?;
        is_fresh(*at, now).then(|| identity.clone())
    }

    /// Caches a valid token, unless the cache is full.
    pub(crate) fn insert(&self, token: &str, identity: &Identity, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_TOKENS {
            known.retain(|_, (_, at)| is_fresh(*at, now));
        }
        if known.len() < MAX_TOKENS {
            known.insert(sha256(token.as_bytes()), (identity.clone(), now));
        }
    }
}

fn is_fresh(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < TTL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_cached_for_its_ttl() {
        let (known, now) = (TokenCache::default(), Instant::now());
        let jo = Identity::new("jo".to_owned(), Vec::new());
        known.insert("abc", &jo, now);
        assert_eq!(known.find("abc", now), Some(jo));
        assert_eq!(known.find("abd", now), None);
        assert_eq!(known.find("abc", now + TTL), None);
    }

    #[test]
    fn the_number_of_cached_tokens_is_bounded() {
        let (known, now) = (TokenCache::default(), Instant::now());
        let jo = Identity::new("jo".to_owned(), Vec::new());
        (0..2 * MAX_TOKENS).for_each(|number| known.insert(&number.to_string(), &jo, now));
        assert_eq!(known.0.lock().expect("is whole").len(), MAX_TOKENS);
        known.insert("another", &jo, now + TTL);
        assert_eq!(known.0.lock().expect("is whole").len(), 1);
    }
}
