//! Deployments, ReplicaSets, ReplicationControllers, StatefulSets, DaemonSets and their revisions.
//!
//! Follows `pkg/apis/apps/v1/defaults.go` and `pkg/apis/apps/validation` of Kubernetes.

use serde_json::{Value, json};

use super::template::{self, immutable, not_negative};
use super::{Strategy, defaults, template_generation};
use crate::errors::FieldError;
use crate::json::{Json, same};
use crate::validate::one_of;

/// What they have in common.
const STAMPED: Strategy = Strategy {
    generation: true,
    prepare_create: |object| object.put_default("/status", json!({})),
    ..Strategy::PLAIN
};

pub const DEPLOYMENT: Strategy = Strategy {
    default: |deployment| {
        defaults(
            deployment,
            [
                ("/spec/replicas", json!(1)),
                ("/spec/strategy/type", json!("RollingUpdate")),
                ("/spec/revisionHistoryLimit", json!(10)),
                ("/spec/progressDeadlineSeconds", json!(600)),
            ],
        );
        if deployment.text("/spec/strategy/type") == "RollingUpdate" {
            let part = json!("25%");
            defaults(
                deployment,
                [
                    ("/spec/strategy/rollingUpdate/maxUnavailable", part.clone()),
                    ("/spec/strategy/rollingUpdate/maxSurge", part),
                ],
            );
        }
        template::default(deployment, "/spec/template");
    },
    validate: validate_deployment,
    validate_update: |new, old, errors| immutable(new, old, &["/spec/selector"], errors),
    ..STAMPED
};

pub const REPLICA_SET: Strategy = Strategy {
    default: |set| {
        set.put_default("/spec/replicas", 1);
        template::default(set, "/spec/template");
    },
    validate: |set, errors| {
        validate_counts(set, errors);
        template::selector(set, "replicaset", errors);
        validate_template(set, errors);
    },
    validate_update: |new, old, errors| immutable(new, old, &["/spec/selector"], errors),
    ..STAMPED
};

pub const REPLICATION_CONTROLLER: Strategy = Strategy {
    default: |controller| {
        controller.put_default("/spec/replicas", 1);
        let labels = controller
            .pointer("/spec/template/metadata/labels")
            .cloned();
        if let Some(labels) = labels {
            controller.put_default("/spec/selector", labels.clone());
            controller.put_default("/metadata/labels", labels);
        }
        template::default(controller, "/spec/template");
    },
    validate: |controller, errors| {
        validate_counts(controller, errors);
        let selector = controller.object("/spec/selector");
        if selector.is_none_or(|s| s.is_empty()) {
            errors.push(FieldError::required("spec.selector", ""));
        }
        let labels = controller.object("/spec/template/metadata/labels");
        let missing = selector
            .into_iter()
            .flatten()
            .any(|(key, value)| labels.and_then(|l| l.get(key)) != Some(value));
        if missing {
            errors.push(FieldError::invalid(
                "spec.template.metadata.labels",
                Value::Object(labels.cloned().unwrap_or_default()),
                "`selector` does not match template `labels`",
            ));
        }
        validate_template(controller, errors);
    },
    ..STAMPED
};

pub const STATEFUL_SET: Strategy = Strategy {
    default: |set| {
        let retain = "/spec/persistentVolumeClaimRetentionPolicy";
        defaults(
            set,
            [
                ("/spec/replicas", json!(1)),
                ("/spec/podManagementPolicy", json!("OrderedReady")),
                ("/spec/updateStrategy/type", json!("RollingUpdate")),
                ("/spec/revisionHistoryLimit", json!(10)),
                (&format!("{retain}/whenDeleted"), json!("Retain")),
                (&format!("{retain}/whenScaled"), json!("Retain")),
            ],
        );
        if set.text("/spec/updateStrategy/type") == "RollingUpdate" {
            set.put_default("/spec/updateStrategy/rollingUpdate/partition", 0);
        }
        for claim in set
            .items_mut("/spec/volumeClaimTemplates")
            .into_iter()
            .flatten()
        {
            defaults(
                claim,
                [
                    ("/apiVersion", json!("v1")),
                    ("/kind", json!("PersistentVolumeClaim")),
                    ("/spec/volumeMode", json!("Filesystem")),
                    ("/status/phase", json!("Pending")),
                ],
            );
        }
        template::default(set, "/spec/template");
    },
    validate: |set, errors| {
        validate_counts(set, errors);
        known(
            set,
            "podManagementPolicy",
            &["OrderedReady", "Parallel"],
            errors,
        );
        known(
            set,
            "updateStrategy/type",
            &["OnDelete", "RollingUpdate"],
            errors,
        );
        template::selector(set, "statefulset", errors);
        validate_template(set, errors);
    },
    validate_update: validate_stateful_set_update,
    ..STAMPED
};

pub const DAEMON_SET: Strategy = Strategy {
    default: |set| {
        defaults(
            set,
            [
                ("/spec/updateStrategy/type", json!("RollingUpdate")),
                ("/spec/revisionHistoryLimit", json!(10)),
            ],
        );
        if set.text("/spec/updateStrategy/type") == "RollingUpdate" {
            defaults(
                set,
                [
                    (
                        "/spec/updateStrategy/rollingUpdate/maxUnavailable",
                        json!(1),
                    ),
                    ("/spec/updateStrategy/rollingUpdate/maxSurge", json!(0)),
                ],
            );
        }
        template::default(set, "/spec/template");
        template_generation::default(set);
    },
    prepare_create: |set| {
        (STAMPED.prepare_create)(set);
        template_generation::begin(set);
    },
    count: template_generation::count,
    validate: |set, errors| {
        validate_counts(set, errors);
        template_generation::validate(set, errors);
        known(
            set,
            "updateStrategy/type",
            &["OnDelete", "RollingUpdate"],
            errors,
        );
        template::selector(set, "daemonset", errors);
        validate_template(set, errors);
    },
    validate_update: |new, old, errors| immutable(new, old, &["/spec/selector"], errors),
    ..STAMPED
};

pub const CONTROLLER_REVISION: Strategy = Strategy {
    validate: |revision, errors| {
        if !revision.has("/revision") {
            errors.push(FieldError::required("revision", ""));
        }
        not_negative(revision, &["/revision"], errors);
    },
    validate_update: |new, old, errors| immutable(new, old, &["/data"], errors),
    ..Strategy::PLAIN
};

fn known(object: &Value, field: &str, words: &[&str], errors: &mut Vec<FieldError>) {
    let path = format!("spec.{}", field.replace('/', "."));
    one_of(object, &format!("/spec/{field}"), path, words, errors);
}

fn validate_counts(object: &Value, errors: &mut Vec<FieldError>) {
    let counts = [
        "/spec/replicas",
        "/spec/minReadySeconds",
        "/spec/revisionHistoryLimit",
    ];
    not_negative(object, &counts, errors);
}

fn validate_template(object: &Value, errors: &mut Vec<FieldError>) {
    template::validate(object, "/spec/template", errors);
    template::restart_policy(object, "/spec/template", &["Always"], errors);
}

fn validate_deployment(deployment: &Value, errors: &mut Vec<FieldError>) {
    validate_counts(deployment, errors);
    template::selector(deployment, "deployment", errors);
    validate_template(deployment, errors);
    known(
        deployment,
        "strategy/type",
        &["Recreate", "RollingUpdate"],
        errors,
    );
    let rolling = "/spec/strategy/rollingUpdate";
    if deployment.text("/spec/strategy/type") == "Recreate" && deployment.has(rolling) {
        errors.push(FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ));
    } else if deployment.has(rolling) {
        let at = |field: &str| deployment.pointer(&format!("{rolling}/{field}"));
        for field in ["maxUnavailable", "maxSurge"] {
            let path = format!("spec.strategy.rollingUpdate.{field}");
            validate_share(at(field), path, errors);
        }
        let none = |value: Option<&Value>| value.is_none_or(|v| v == 0 || v == "0%");
        if none(at("maxUnavailable")) && none(at("maxSurge")) {
            errors.push(FieldError::invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                at("maxUnavailable").cloned().unwrap_or_default(),
                "may not be 0 when `maxSurge` is 0",
            ));
        }
    }
    let ready = deployment.integer("/spec/minReadySeconds").unwrap_or(0);
    if let Some(deadline) = deployment.integer("/spec/progressDeadlineSeconds")
        && deadline <= ready
    {
        errors.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
}

/// A number of pods, or a share of them in percent.
fn validate_share(value: Option<&Value>, path: String, errors: &mut Vec<FieldError>) {
    let Some(value) = value else {
        return;
    };
    let why = match value {
        Value::String(text) => text
            .strip_suffix('%')
            .and_then(|digits| digits.parse::<u32>().ok())
            .is_none()
            .then_some("a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"),
        other => other.as_i64().is_none_or(|n| n < 0).then_some("must be greater than or equal to 0"),
    };
    if let Some(why) = why {
        errors.push(FieldError::invalid(path, value.clone(), why));
    }
}

fn validate_stateful_set_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let rest = |set: &Value| {
        let mut spec = set["spec"].clone();
        for field in [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ] {
            spec.take_at(&format!("/{field}"));
        }
        spec
    };
    if !same(&rest(new), &rest(old)) {
        errors.push(FieldError::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(deployment: &Value) -> Vec<String> {
        let mut errors = Vec::new();
        let mut deployment = deployment.clone();
        (DEPLOYMENT.default)(&mut deployment);
        validate_deployment(&deployment, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn mistakes_in_a_deployment_are_named() {
        let good = json!({"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {
            "metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        assert_eq!(texts(&good), [""; 0]);
        for (pointer, value, want) in [
            (
                "/spec/replicas",
                json!(-1),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                "/spec/template/metadata/labels/app",
                json!("b"),
                "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`",
            ),
            (
                "/spec/selector",
                json!({}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (
                "/spec/template/spec/restartPolicy",
                json!("Never"),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                "/spec/template/spec/containers/0/image",
                json!(""),
                "spec.template.spec.containers[0].image: Required value",
            ),
            (
                "/spec/strategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ),
            (
                "/spec/strategy",
                json!({"type": "Recreate", "rollingUpdate": {}}),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                "/spec/progressDeadlineSeconds",
                json!(0),
                "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
            ),
        ] {
            let mut bad = good.clone();
            if let Some(place) = bad.pointer_mut(pointer) {
                *place = value;
            } else {
                bad.put(pointer, value);
            }
            assert_eq!(texts(&bad), [want], "{pointer}");
        }
    }
}
