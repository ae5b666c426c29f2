//! Reviews: answers to "who am I", "may I", "may she" and "whose token is this".

use control_plane_registry::json::Json;
use control_plane_registry::{Kind, Registry};
use serde_json::{Value, json};

use super::action::{Action, On, Resource};
use super::{Access, Authorization, MASTERS, User};

impl Access {
    /// Fills in the status of a review that `user` sends.
    pub fn review(
        &self,
        registry: &Registry,
        kind: &Kind,
        namespace: &str,
        user: &User,
        review: &mut Value,
    ) {
        let status = match kind.kind {
            "SelfSubjectReview" => json!({"userInfo": user.info()}),
            "SelfSubjectAccessReview" => self.may(registry, user, review),
            "SubjectAccessReview" | "LocalSubjectAccessReview" => {
                if kind.namespaced {
                    review.put_default("/spec/resourceAttributes/namespace", namespace);
                }
                self.may(registry, &subject(review), review)
            }
            "SelfSubjectRulesReview" => self.rules(registry, user, review.text("/spec/namespace")),
            "TokenReview" => self.token(registry, review),
            _ => return,
        };
        review.put("/status", status);
    }

    fn may(&self, registry: &Registry, user: &User, review: &Value) -> Value {
        let text = |field: &str| review.text(&format!("/spec/{field}"));
        let action = if review.has("/spec/resourceAttributes") {
            Action {
                verb: text("resourceAttributes/verb"),
                on: On::Resource(Resource {
                    group: text("resourceAttributes/group"),
                    resource: text("resourceAttributes/resource"),
                    subresource: text("resourceAttributes/subresource"),
                    namespace: text("resourceAttributes/namespace"),
                    name: text("resourceAttributes/name"),
                }),
            }
        } else {
            Action {
                verb: text("nonResourceAttributes/verb"),
                on: On::Path(text("nonResourceAttributes/path")),
            }
        };
        let decision = self.decide(registry, user, &action);
        let mut status = json!({"allowed": decision.allowed});
        if !decision.reason.is_empty() {
            status["reason"] = decision.reason.into();
        }
        status
    }

    fn rules(&self, registry: &Registry, user: &User, namespace: &str) -> Value {
        let everything = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
        let everywhere = json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]);
        if self.mode == Authorization::AlwaysAllow || user.is_in(MASTERS) {
            return json!({"incomplete": false, "resourceRules": everything, "nonResourceRules": everywhere});
        }
        let rbac = self.rbac(registry);
        let (paths, resources): (Vec<_>, Vec<_>) = rbac
            .rules(user, namespace)
            .partition(|rule| !rule.urls.is_empty());
        let shown = |rules: Vec<&super::rbac::Rule>| {
            rules
                .into_iter()
                .map(|rule| rule.shown())
                .collect::<Vec<_>>()
        };
        json!({
            "incomplete": false,
            "resourceRules": shown(resources),
            "nonResourceRules": shown(paths),
        })
    }

    fn token(&self, registry: &Registry, review: &Value) -> Value {
        let token = review.text("/spec/token");
        let audiences: Vec<String> = review
            .items("/spec/audiences")
            .iter()
            .filter_map(|a| a.as_str().map(ToOwned::to_owned))
            .collect();
        let authenticators = &self.authenticators;
        if let Some(user) = authenticators.tokens.get(token) {
            return json!({"authenticated": true, "user": user.info()});
        }
        let verified = match &authenticators.service_accounts {
            Some(accounts) => accounts.verify(registry, token, &audiences),
            None => Err("this server has no token authenticator".to_owned()),
        };
        match verified {
            Ok(verified) => json!({
                "authenticated": true,
                "user": verified.user.info(),
                "audiences": verified.audiences,
            }),
            Err(why) => json!({"user": {}, "error": why}),
        }
    }
}

/// Whom a review is about.
fn subject(review: &Value) -> User {
    let strings = |pointer: &str| -> Vec<String> {
        let items = review.items(pointer).iter();
        items
            .filter_map(|i| i.as_str().map(ToOwned::to_owned))
            .collect()
    };
    User {
        name: review.text("/spec/user").to_owned(),
        uid: review.text("/spec/uid").to_owned(),
        groups: strings("/spec/groups"),
        extra: serde_json::from_value(review["spec"]["extra"].clone()).unwrap_or_default(),
    }
}
