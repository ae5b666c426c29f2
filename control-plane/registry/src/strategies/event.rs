//! Events: they stand in the namespace of what they are about, and go after an hour.

use super::Strategy;
use crate::errors::FieldError;
use crate::json::Json;

pub const EVENT: Strategy = Strategy {
    validate: |event, errors| {
        let about = event.text("/involvedObject/namespace");
        let own = event.text("/metadata/namespace");
        // Events about cluster-scoped objects stand in "default" or "kube-system".
        let ok = about == own || (about.is_empty() && matches!(own, "default" | "kube-system"));
        if !ok {
            errors.push(FieldError::invalid(
                "involvedObject.namespace",
                about,
                "does not match event.namespace",
            ));
        }
    },
    time_to_live: Some(3600),
    ..Strategy::PLAIN
};
