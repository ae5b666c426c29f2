//! `metadata`: the fields that the system writes and no client changes.

use rand::Rng;
use serde_json::Value;

use crate::json::Json;
use crate::kinds::Kind;

/// Now, as `meta/v1` `Time` writes it: RFC 3339 in UTC, in whole seconds.
#[must_use]
pub fn now() -> String {
    time(jiff::Timestamp::now())
}

/// A moment as `meta/v1` `Time` writes it.
#[must_use]
pub fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The random end of a generated name: no vowels, so that it is no word.
#[must_use]
pub fn generate(prefix: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const MAX_PREFIX: usize = 58;
    let mut name: String = prefix.chars().take(MAX_PREFIX).collect();
    let mut random = rand::rng();
    name.extend((0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])));
    name
}

/// Gives a new object its identity.
pub fn create(kind: &Kind, object: &mut Value) {
    for field in [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
    ] {
        object.take_at(&format!("/metadata/{field}"));
    }
    object.put("/metadata/uid", uuid::Uuid::new_v4().to_string());
    object.put("/metadata/creationTimestamp", now());
    if kind.strategy.generation {
        object.put("/metadata/generation", 1);
    }
}

/// Carries over what no update changes.
pub fn carry(new: &mut Value, old: &Value) {
    for field in [
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ] {
        let pointer = format!("/metadata/{field}");
        match old.pointer(&pointer) {
            Some(value) => new.put(&pointer, value.clone()),
            None => {
                new.take_at(&pointer);
            }
        }
    }
    new.take_at("/metadata/selfLink");
}

/// Whether the deletion of the object began and nothing holds it any longer.
#[must_use]
pub fn ended(kind: &Kind, object: &Value) -> bool {
    object.has("/metadata/deletionTimestamp")
        && object
            .integer("/metadata/deletionGracePeriodSeconds")
            .unwrap_or(0)
            == 0
        && !held(kind, object)
}

/// Whether finalizers hold the object.
#[must_use]
pub fn held(kind: &Kind, object: &Value) -> bool {
    !object.items("/metadata/finalizers").is_empty() || (kind.strategy.waits)(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_keep_within_63_characters() {
        let name = generate(&"a".repeat(100));
        assert_eq!(name.len(), 63);
        assert_ne!(generate("x-"), generate("x-"));
    }
}
