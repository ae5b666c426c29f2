//! The values of expressions.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use control_plane_quota::Quantity;
use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};

/// A value. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Value>>),
    /// In the order in which it was written; keys are few, or are looked up in [`Value::get`].
    Map(Arc<Vec<(Value, Value)>>),
    Duration(SignedDuration),
    Timestamp(Timestamp),
    Optional(Option<Arc<Value>>),
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(IpNetwork),
    Url(Arc<str>),
    Type(&'static str),
}

impl Value {
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::String(text.into())
    }

    /// An optional value.
    #[must_use]
    pub fn optional(inner: Option<Self>) -> Self {
        Self::Optional(inner.map(Arc::new))
    }

    /// A map of names.
    #[must_use]
    pub fn map(pairs: std::collections::BTreeMap<String, Self>) -> Self {
        let pairs = pairs.into_iter();
        Self::Map(Arc::new(
            pairs
                .map(|(name, value)| (Self::text(&name), value))
                .collect(),
        ))
    }

    pub(crate) fn list(items: Vec<Self>) -> Self {
        Self::List(Arc::new(items))
    }

    /// The name of its type.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Type(_) => "type",
        }
    }

    /// What stands under `key` in a map.
    pub(crate) fn get(&self, key: &Self) -> Option<&Self> {
        let Self::Map(pairs) = self else {
            return None;
        };
        if let (Self::String(wanted), true) = (key, pairs.len() > 8) {
            // Maps of JSON are sorted by their keys.
            let of = |pair: &(Self, Self)| match &pair.0 {
                Self::String(text) => text.as_ref().cmp(wanted.as_ref()),
                _ => Ordering::Less,
            };
            if let Ok(at) = pairs.binary_search_by(of) {
                return pairs.get(at).map(|(_, value)| value);
            }
        }
        let found = pairs.iter().find(|(given, _)| given.equals(key));
        found.map(|(_, value)| value)
    }

    /// As many things as it is made of, up to `most`: what comparing or copying it costs.
    pub(crate) fn size(&self, most: u64) -> u64 {
        let mut size = 1;
        let mut grow = |more: u64| {
            size += more;
            size < most
        };
        match self {
            Self::String(text) => drop(grow(text.len() as u64 / 10)),
            Self::List(items) => {
                let _ = items.iter().all(|item| grow(item.size(most)));
            }
            Self::Map(pairs) => {
                let _ = pairs.iter().all(|(_, value)| grow(1 + value.size(most)));
            }
            _ => {}
        }
        size
    }

    /// CEL's equality: numbers are equal across their types, and what is of different types is not.
    #[must_use]
    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::String(a), Self::String(b)) | (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b))
            }
            (Self::Map(a), Self::Map(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .all(|(key, value)| other.get(key).is_some_and(|other| other.equals(value)))
            }
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Self::Quantity(a), Self::Quantity(b)) => a == b,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Type(a), Self::Type(b)) => a == b,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// The order of two values; `None` where there is none.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Uint(b)) => {
                Some(u64::try_from(*a).map_or(Ordering::Less, |a| a.cmp(b)))
            }
            (Self::Uint(_), Self::Int(_)) => other.compare(self).map(Ordering::reverse),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (Self::Double(a), Self::Int(b)) => a.partial_cmp(&float(*b)),
            (Self::Int(a), Self::Double(b)) => float(*a).partial_cmp(b),
            #[expect(clippy::cast_precision_loss, reason = "CEL compares as doubles")]
            (Self::Double(a), Self::Uint(b)) => a.partial_cmp(&(*b as f64)),
            (Self::Uint(_), Self::Double(_)) => other.compare(self).map(Ordering::reverse),
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "CEL compares as doubles")]
fn float(number: i64) -> f64 {
    number as f64
}
