//! Events: they stand in the namespace of what they are about, and go after an hour. They are stored as the core group
//! has them and shown in `events.k8s.io` too, where some fields have other names.

use serde_json::Value;

use super::Strategy;
use crate::errors::FieldError;
use crate::json::Json;
use crate::kinds::Conversion;

pub const EVENT: Strategy = Strategy {
    validate: |event, errors| validate(event, "involvedObject", errors),
    time_to_live: Some(3600),
    ..Strategy::PLAIN
};

pub const NEW_EVENT: Strategy = Strategy {
    validate: |event, errors| validate(event, "regarding", errors),
    ..Strategy::PLAIN
};

pub const NEW_EVENT_CONVERSION: Conversion = Conversion {
    to_stored: |event| {
        event.put("/apiVersion", "v1");
        for (core, new) in NAMES {
            rename(event, new, core);
        }
    },
    from_stored: |event| {
        event.put("/apiVersion", "events.k8s.io/v1");
        for (core, new) in NAMES {
            rename(event, core, new);
        }
    },
};

/// The names of the core group and those of `events.k8s.io`.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(event: &mut Value, from: &str, to: &str) {
    if let Some(value) = event.take_at(&format!("/{from}")) {
        event[to] = value;
    }
}

fn validate(event: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let about = event.text(&format!("/{field}/namespace"));
    let own = event.text("/metadata/namespace");
    // Events about cluster-scoped objects stand in "default" or "kube-system".
    let ok = about == own || (about.is_empty() && matches!(own, "default" | "kube-system"));
    if !ok {
        errors.push(FieldError::invalid(
            format!("{field}.namespace"),
            about,
            "does not match event.namespace",
        ));
    }
}
