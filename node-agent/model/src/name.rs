//! Names of objects. The agent has each in many places, so a clone is a pointer to the same text.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Namespace and name; ordered by the namespace first.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectName(Arc<NameParts>);

/// What an [`ObjectName`] is made of.
#[derive(Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NameParts {
    pub namespace: String,
    pub name: String,
}

impl ObjectName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self(Arc::new(NameParts {
            namespace: namespace.into(),
            name: name.into(),
        }))
    }
}

impl Deref for ObjectName {
    type Target = NameParts;

    fn deref(&self) -> &NameParts {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
