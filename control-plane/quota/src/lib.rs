//! What an object takes of a namespace's ResourceQuotas, and what its LimitRanges say of it.
//!
//! Pure: the API server asks before it writes, the quota controller afterwards, and both must count alike.
//! See <https://kubernetes.io/docs/concepts/policy/resource-quotas/> and
//! <https://kubernetes.io/docs/concepts/policy/limit-range/>.

#![forbid(unsafe_code)]

pub mod limits;
mod pods;
mod quantity;
pub mod quota;
pub mod usage;

pub use quantity::Quantity;

use std::collections::BTreeMap;

use serde_json::Value;

/// Amounts by the name of what is counted, as `status.used` has them.
pub type Amounts = BTreeMap<String, Quantity>;

/// The quantities of a `ResourceList`; what cannot be read is left out.
#[must_use]
pub fn amounts(list: Option<&Value>) -> Amounts {
    let all = list.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, value)| {
        let quantity = match value {
            Value::String(text) => Quantity::parse(text),
            other => Quantity::parse(&other.to_string()),
        };
        Some((name.clone(), quantity?))
    })
    .collect()
}

/// The `ResourceList` of amounts.
#[must_use]
pub fn list(amounts: &Amounts) -> Value {
    let all = amounts.iter();
    all.map(|(name, amount)| (name.clone(), amount.to_string().into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Adds `more` to `amounts`.
pub fn add(amounts: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = amounts.entry(name.clone()).or_default();
        *sum = sum.plus(*amount);
    }
}

/// Raises `amounts` to `others` where those are higher.
fn raise(amounts: &mut Amounts, others: &Amounts) {
    for (name, amount) in others {
        let highest = amounts.entry(name.clone()).or_insert(*amount);
        *highest = (*highest).max(*amount);
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    let found = object.pointer(pointer);
    found.and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    let found = object.pointer(pointer).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}
