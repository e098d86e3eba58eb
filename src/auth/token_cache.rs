//! Tokens that the API server has recognised a moment ago, so that it is not asked about them with each
//! request. What their holders may is asked each time.
//!
//! Only a token's SHA-256 is kept, and only of tokens that were recognised, so strangers fill nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{auth::token_review::Identity, contract::digest::sha256};

/// How long the API server's word holds; a token that was revoked opens no longer than this.
const TTL: Duration = Duration::from_secs(10);

/// Most tokens that are remembered.
const MAX_TOKENS: usize = 1024;

/// The tokens, and whose they are.
#[derive(Default)]
pub struct TokenCache(Mutex<HashMap<String, (Identity, Instant)>>);

impl TokenCache {
    /// Whose token this is, if that was found out a moment ago.
    #[must_use]
    pub fn find(&self, token: &str, now: Instant) -> Option<Identity> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (identity, at) = known.get(&sha256(token.as_bytes()))?;
        is_fresh(*at, now).then(|| identity.clone())
    }

    /// Remembers whose token this is, if there is room.
    pub fn insert(&self, token: &str, identity: &Identity, now: Instant) {
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
    fn a_token_is_remembered_for_a_moment_and_is_no_other() {
        let (known, now) = (TokenCache::default(), Instant::now());
        let jo = Identity::new("jo".to_owned(), Vec::new());
        known.insert("abc", &jo, now);
        assert_eq!(known.find("abc", now), Some(jo));
        assert_eq!(known.find("abd", now), None);
        assert_eq!(known.find("abc", now + TTL), None);
    }

    #[test]
    fn many_tokens_take_bounded_room() {
        let (known, now) = (TokenCache::default(), Instant::now());
        let jo = Identity::new("jo".to_owned(), Vec::new());
        (0..2 * MAX_TOKENS).for_each(|number| known.insert(&number.to_string(), &jo, now));
        assert_eq!(known.0.lock().expect("is whole").len(), MAX_TOKENS);
        known.insert("another", &jo, now + TTL);
        assert_eq!(known.0.lock().expect("is whole").len(), 1);
    }
}
