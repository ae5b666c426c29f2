//! What is particular to single kinds, as functions that the rows of the table name.

mod access;
mod admission;
mod autoscaling;
mod batch;
mod cluster;
mod config;
mod definition;
mod endpoints;
mod event;
mod lease;
mod namespace;
mod network_policy;
mod networking;
mod node;
mod pod;
mod pod_defaults;
mod pod_parts;
mod pod_validate;
mod policy;
mod quota;
mod service;
mod service_validate;
mod storage;
mod template;
mod template_generation;
mod workloads;

use serde_json::{Map, Value};

use crate::allocate::Claims;
use crate::errors::FieldError;
use crate::json::Json;
use crate::kinds::Subresource;
use crate::validate;

pub use access::{ACCESS_REVIEW, REVIEW, ROLE, ROLE_BINDING, TOKEN_REVIEW};
pub use admission::{POLICY_BINDING, VALIDATING_POLICY};
pub use autoscaling::{AUTOSCALER, AUTOSCALER_V1, AUTOSCALER_V1_CONVERSION};
pub use batch::{CRON_JOB, JOB};
pub use cluster::{
    API_SERVICE, FLOW_SCHEMA, PRIORITY_CLASS, PRIORITY_LEVEL, RUNTIME_CLASS, WEBHOOKS,
};
pub use config::{CONFIG_MAP, SECRET, SERVICE_ACCOUNT};
pub use definition::{CLEANUP, CUSTOM_RESOURCE_DEFINITION};
pub use endpoints::{ENDPOINT_SLICE, ENDPOINTS};
pub use event::{EVENT, NEW_EVENT, NEW_EVENT_CONVERSION};
pub use lease::LEASE;
pub use namespace::{NAMESPACE, NAMESPACES};
pub use network_policy::NETWORK_POLICY;
pub use networking::{INGRESS, INGRESS_CLASS};
pub use node::NODE;
pub use pod::{POD, bind};
pub use policy::{DISRUPTION_BUDGET, covers, frees_unready, needs_no_budget, spend};
pub use quota::{LIMIT_RANGE, RESOURCE_QUOTA};
pub use service::SERVICE;
pub use storage::{
    CSI_DRIVER, PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, STORAGE_CLASS, VOLUME_ATTACHMENT,
};
pub use template::POD_TEMPLATE;
pub use workloads::{
    CONTROLLER_REVISION, DAEMON_SET, DEPLOYMENT, REPLICA_SET, REPLICATION_CONTROLLER, STATEFUL_SET,
};

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
    /// What a write to any part of the object counts beside that, whatever the client wrote, as (new, old).
    pub count: fn(&mut Value, &Value),
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
    /// Whether everything that the schema requires outside of metadata and status must be there.
    pub required: bool,
    /// What the server keeps of this object and does not act on.
    pub caveat: fn(&Value) -> Option<&'static str>,
    /// The old object with the part that a subresource is about, taken from the new one.
    pub part: fn(Subresource, new: &Value, old: &Value) -> Value,
    /// What is wrong with such a change.
    pub validate_part: fn(Subresource, new: &Value, old: &Value, &mut Vec<FieldError>),
    /// The object is answered and not stored.
    pub review: bool,
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
        count: |_, _| {},
        grace: |_, _| 0,
        keep: |_| None,
        terminate: |_| {},
        waits: |_| false,
        returns_deleted: false,
        required: false,
        caveat: |_| None,
        part: |_, _, old| old.clone(),
        validate_part: |_, _, _, _| {},
        review: false,
        time_to_live: None,
    };
}

/// No behaviour but that required fields must be there.
pub const CHECKED: Strategy = Strategy {
    required: true,
    ..Strategy::PLAIN
};

/// Puts what is not there.
fn defaults<'a>(object: &mut Value, values: impl IntoIterator<Item = (&'a str, Value)>) {
    for (pointer, value) in values {
        object.put_default(pointer, value);
    }
}

/// A first status in which nothing stands yet.
fn empty_status(object: &mut Value) {
    object.put("/status", Value::Object(Map::new()));
}
