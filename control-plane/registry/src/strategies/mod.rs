//! What is particular to single kinds, as functions that the rows of the table name.

mod config;
mod endpoints;
mod event;
mod lease;
mod namespace;
mod node;
mod pod;
mod pod_defaults;
mod pod_validate;
mod service;
mod service_validate;

use serde_json::Value;

use crate::allocate::Claims;
use crate::errors::FieldError;
use crate::validate;

pub use config::{CONFIG_MAP, SECRET, SERVICE_ACCOUNT};
pub use endpoints::{ENDPOINT_SLICE, ENDPOINTS};
pub use event::EVENT;
pub use lease::LEASE;
pub use namespace::{NAMESPACE, NAMESPACES};
pub use node::NODE;
pub use pod::{POD, bind};
pub use service::SERVICE;

/// The hooks of a kind, in the order in which a write meets them.
#[derive(Clone, Copy, Debug)]
pub struct Strategy {
    /// The rule for names: answers why a name is none.
    pub name: fn(&str) -> Option<String>,
    /// Fills in what the user left out, on every write and before anything is compared.
    pub default: fn(&mut Value),
    /// Makes a new object's system fields (a first status).
    pub prepare_create: fn(&mut Value),
    /// Carries over from the old object what the new one may leave out.
    pub prepare_update: fn(&mut Value, &Value),
    pub validate: fn(&Value, &mut Vec<FieldError>),
    /// Says what may not change, as (new, old).
    pub validate_update: fn(&Value, &Value, &mut Vec<FieldError>),
    /// Values that the object shares out with others of its kind (ClusterIPs, node ports).
    pub claim: Option<Claim>,
    /// Whether the client's status is kept when it creates the object.
    pub keeps_status: bool,
    /// Whether `metadata.generation` counts the changes of the specification.
    pub generation: bool,
    /// How long the object stays after a delete, as (object, asked), in seconds; 0: it goes at once.
    pub grace: fn(&Value, Option<i64>) -> i64,
    /// A word against deleting the object with this name.
    pub keep: fn(&str) -> Option<&'static str>,
    /// Marks the object whose deletion begins.
    pub terminate: fn(&mut Value),
    /// Whether the object, once its deletion began, waits for more than `metadata.finalizers`.
    pub waits: fn(&Value) -> bool,
    /// Whether a delete answers with the object even when it went at once.
    pub returns_deleted: bool,
    /// How long objects live after their last write, in seconds.
    pub time_to_live: Option<u64>,
}

/// Works out what `new` takes and `old` gives back, and fills the values in.
pub type Claim =
    fn(&Claims, old: Option<&Value>, new: Option<&mut Value>) -> Result<Plan, Vec<FieldError>>;

/// Keys of the store that an object takes or gives back in the transaction that writes it.
#[derive(Debug, Default)]
pub struct Plan {
    pub take: Vec<Taking>,
    pub give_back: Vec<String>,
}

/// One key to take.
#[derive(Debug)]
pub struct Taking {
    pub key: String,
    pub value: Value,
    /// What to answer when somebody else has it. `None`: it was our choice, so choose again.
    pub refusal: Option<FieldError>,
}

impl Strategy {
    /// No special behaviour.
    pub const PLAIN: Self = Self {
        name: validate::subdomain,
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        validate: |_, _| {},
        validate_update: |_, _, _| {},
        claim: None,
        keeps_status: false,
        generation: false,
        grace: |_, _| 0,
        keep: |_| None,
        terminate: |_| {},
        waits: |_| false,
        returns_deleted: false,
        time_to_live: None,
    };
}
