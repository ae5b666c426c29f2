//! Who asks: a name, and the groups that roles and flow schemas know.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};

/// What an authenticator found out about a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// Empty when the authenticator knows none.
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Its members may do everything, whatever the roles say.
pub const MASTERS: &str = "system:masters";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

static NOBODY: LazyLock<Arc<User>> = LazyLock::new(|| {
    Arc::new(User {
        name: ANONYMOUS.to_owned(),
        groups: vec![UNAUTHENTICATED.to_owned()],
        ..User::default()
    })
});

impl User {
    /// A client that did not say who it is.
    pub fn anonymous() -> Arc<Self> {
        NOBODY.clone()
    }

    /// A client that proved to be `name`; everybody who did is in `system:authenticated`.
    #[must_use]
    pub fn authenticated(name: impl Into<String>, uid: &str, mut groups: Vec<String>) -> Self {
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self {
            name: name.into(),
            uid: uid.to_owned(),
            groups,
            extra: BTreeMap::new(),
        }
    }

    /// The user that a ServiceAccount is.
    #[must_use]
    pub fn of_service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ];
        Self::authenticated(format!("{SERVICE_ACCOUNT}{namespace}:{name}"), uid, groups)
    }

    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Namespace and name, if the user is a ServiceAccount.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')
    }

    /// `authentication.k8s.io/v1` `UserInfo`.
    #[must_use]
    pub fn info(&self) -> Value {
        let mut info = json!({"username": self.name});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.groups.is_empty() {
            info["groups"] = self.groups.clone().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}
