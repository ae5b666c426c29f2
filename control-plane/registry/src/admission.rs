//! Those outside of this crate who may complete or refuse an object on its way to the store.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>

use async_trait::async_trait;
use serde_json::Value;

use crate::errors::Result;
use crate::kinds::{Kind, Subresource};

/// What is to be done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// A write before it is done.
#[derive(Clone, Copy, Debug)]
pub struct Proposed<'a> {
    pub kind: &'static Kind,
    pub subresource: Option<Subresource>,
    pub namespace: &'a str,
    /// Empty where the name is still to be made.
    pub name: &'a str,
    pub operation: Operation,
    /// The object before the write.
    pub old: Option<&'a Value>,
    pub dry_run: bool,
}

/// Asked about every write of a request, in this order. A write that is tried again is asked about again.
#[async_trait]
pub trait Admission: std::fmt::Debug + Send + Sync {
    /// Changes an object before it is validated.
    ///
    /// # Errors
    /// The refusal.
    async fn mutate(&self, proposed: &Proposed<'_>, object: &mut Value) -> Result<()>;

    /// Looks at an object as it would be stored; `None` for one that is to be deleted.
    ///
    /// # Errors
    /// The refusal.
    async fn validate(&self, proposed: &Proposed<'_>, object: Option<&Value>) -> Result<()>;
}
