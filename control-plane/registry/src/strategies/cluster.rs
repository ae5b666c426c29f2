//! What describes the cluster: webhooks and policies of admission, aggregated services, fairness, runtimes, priorities.

use serde_json::{Value, json};

use super::template::immutable;
use super::{Strategy, admission, defaults, empty_status};
use crate::errors::FieldError;
use crate::json::Json;
use crate::meta;
use crate::validate::{self, one_of};

pub const WEBHOOKS: Strategy = Strategy {
    default: |configuration| {
        let mutating = configuration.text("/kind").starts_with("Mutating");
        for hook in configuration.items_mut("/webhooks").into_iter().flatten() {
            defaults(
                hook,
                [
                    ("/failurePolicy", json!("Fail")),
                    ("/matchPolicy", json!("Equivalent")),
                    ("/namespaceSelector", json!({})),
                    ("/objectSelector", json!({})),
                    ("/timeoutSeconds", json!(10)),
                ],
            );
            if mutating {
                hook.put_default("/reinvocationPolicy", "Never");
            }
            if hook.has("/clientConfig/service") {
                hook.put_default("/clientConfig/service/port", 443);
            }
            for rule in hook.items_mut("/rules").into_iter().flatten() {
                rule.put_default("/scope", "*");
            }
        }
    },
    validate: |configuration, errors| {
        for (at, hook) in configuration.items("/webhooks").iter().enumerate() {
            let path = format!("webhooks[{at}]");
            let name = hook.text("/name");
            if name.split('.').count() < 3 || validate::subdomain(name).is_some() {
                errors.push(FieldError::invalid(
                    format!("{path}.name"),
                    name,
                    "should be a domain with at least three segments separated by dots",
                ));
            }
            let policies = ["Fail", "Ignore"];
            one_of(
                hook,
                "/failurePolicy",
                format!("{path}.failurePolicy"),
                &policies,
                errors,
            );
            let path_of = format!("{path}.matchConditions");
            admission::conditions(hook, "/matchConditions", &path_of, &[], errors);
            let url = hook.text("/clientConfig/url");
            if !url.is_empty() && !url.starts_with("https://") {
                errors.push(FieldError::invalid(
                    format!("{path}.clientConfig.url"),
                    url,
                    "'https' is the only allowed URL scheme",
                ));
            }
            let url = hook.has("/clientConfig/url");
            if url == hook.has("/clientConfig/service") {
                errors.push(FieldError::required(
                    format!("{path}.clientConfig"),
                    "exactly one of url or service is required",
                ));
            }
        }
    },
    required: true,
    generation: true,
    ..Strategy::PLAIN
};

pub const API_SERVICE: Strategy = Strategy {
    name: validate::path_segment,
    prepare_create: |service| {
        // What the server answers itself is there as long as the server is.
        if !service.has("/spec/service") {
            service.put(
                "/status/conditions",
                json!([{
                    "type": "Available",
                    "status": "True",
                    "reason": "Local",
                    "message": "Local APIServices are always available",
                    "lastTransitionTime": meta::now(),
                }]),
            );
        }
    },
    default: |service| {
        if service.has("/spec/service") {
            service.put_default("/spec/service/port", 443);
        }
    },
    validate: |service, errors| {
        let name = service.text("/metadata/name");
        let want = format!(
            "{}.{}",
            service.text("/spec/version"),
            service.text("/spec/group")
        );
        if name != want {
            errors.push(FieldError::invalid(
                "metadata.name",
                name,
                format!("must be `spec.version+\".\"+spec.group`: {want:?}"),
            ));
        }
    },
    required: true,
    ..Strategy::PLAIN
};

pub const FLOW_SCHEMA: Strategy = Strategy {
    default: |schema| schema.put_default("/spec/matchingPrecedence", 1000),
    prepare_create: empty_status,
    required: true,
    generation: true,
    ..Strategy::PLAIN
};

pub const PRIORITY_LEVEL: Strategy = Strategy {
    prepare_create: empty_status,
    default: |level| {
        if level.has("/spec/limited") {
            defaults(
                level,
                [
                    ("/spec/limited/nominalConcurrencyShares", json!(30)),
                    ("/spec/limited/lendablePercent", json!(0)),
                ],
            );
        }
    },
    validate: |level, errors| {
        one_of(
            level,
            "/spec/type",
            "spec.type",
            &["Exempt", "Limited"],
            errors,
        );
    },
    required: true,
    generation: true,
    ..Strategy::PLAIN
};

pub const RUNTIME_CLASS: Strategy = Strategy {
    validate: |class, errors| {
        let handler = class.text("/handler");
        if let (false, Some(why)) = (handler.is_empty(), validate::label(handler)) {
            errors.push(FieldError::invalid("handler", handler, why));
        }
    },
    validate_update: |new, old, errors| immutable(new, old, &["/handler"], errors),
    required: true,
    ..Strategy::PLAIN
};

pub const PRIORITY_CLASS: Strategy = Strategy {
    default: |class| class.put_default("/preemptionPolicy", "PreemptLowerPriority"),
    validate: |class: &Value, errors| {
        /// Above this only the system's own classes are.
        const USERS: i64 = 1_000_000_000;
        let name = class.text("/metadata/name");
        let value = class.integer("/value").unwrap_or(0);
        if value > USERS && !name.starts_with("system-") {
            errors.push(FieldError::forbidden(
                "value",
                format!("maximum allowed value of a user defined priority is {USERS}"),
            ));
        }
        let words = ["Never", "PreemptLowerPriority"];
        one_of(
            class,
            "/preemptionPolicy",
            "preemptionPolicy",
            &words,
            errors,
        );
    },
    validate_update: |new, old, errors| {
        if new["value"] != old["value"] {
            errors.push(FieldError::forbidden(
                "value",
                "may not be changed in an update.",
            ));
        }
        immutable(new, old, &["/preemptionPolicy"], errors);
    },
    ..Strategy::PLAIN
};
