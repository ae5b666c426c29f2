//! Volumes, claims, classes and drivers. Follows `pkg/apis/core` and `pkg/apis/storage` of Kubernetes.

use serde_json::{Value, json};

use super::template::immutable;
use super::{Strategy, defaults};
use crate::errors::FieldError;
use crate::json::{Json, same};
use crate::validate::{self, one_of};

const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

pub const PERSISTENT_VOLUME: Strategy = Strategy {
    default: |volume| {
        defaults(
            volume,
            [
                ("/spec/persistentVolumeReclaimPolicy", json!("Retain")),
                ("/spec/volumeMode", json!("Filesystem")),
            ],
        );
        if volume.has("/spec/hostPath") {
            volume.put_default("/spec/hostPath/type", "");
        }
    },
    prepare_create: |volume| volume.put("/status", json!({"phase": "Pending"})),
    validate: |volume, errors| {
        access_modes(volume, errors);
        if volume.object("/spec/capacity").is_none_or(|c| c.is_empty()) {
            errors.push(FieldError::required("spec.capacity", ""));
        }
        let path = "spec.persistentVolumeReclaimPolicy";
        let words = ["Delete", "Recycle", "Retain"];
        one_of(
            volume,
            "/spec/persistentVolumeReclaimPolicy",
            path,
            &words,
            errors,
        );
    },
    ..Strategy::PLAIN
};

pub const PERSISTENT_VOLUME_CLAIM: Strategy = Strategy {
    default: |claim| claim.put_default("/spec/volumeMode", "Filesystem"),
    prepare_create: |claim| claim.put("/status", json!({"phase": "Pending"})),
    validate: |claim, errors| {
        access_modes(claim, errors);
        let size = claim.text("/spec/resources/requests/storage");
        if size.is_empty() {
            errors.push(FieldError::required("spec.resources[storage]", ""));
        } else if validate::quantity(size).is_none_or(|n| n <= 0.0) {
            errors.push(FieldError::invalid(
                "spec.resources[storage]",
                size,
                "must be greater than zero",
            ));
        }
    },
    validate_update: |new, old, errors| {
        let rest = |claim: &Value| {
            let mut spec = claim["spec"].clone();
            for field in ["resources", "volumeAttributesClassName"] {
                spec.take_at(&format!("/{field}"));
            }
            spec
        };
        // The volume that a claim is bound to is filled in once.
        let mut before = rest(old);
        if before.text("/volumeName").is_empty() {
            before.put("/volumeName", rest(new)["volumeName"].clone());
        }
        if !same(&rest(new), &before) {
            errors.push(FieldError::forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            ));
        }
    },
    ..Strategy::PLAIN
};

pub const STORAGE_CLASS: Strategy = Strategy {
    default: |class| {
        defaults(
            class,
            [
                ("/reclaimPolicy", json!("Delete")),
                ("/volumeBindingMode", json!("Immediate")),
            ],
        );
    },
    validate: |class, errors| {
        one_of(
            class,
            "/reclaimPolicy",
            "reclaimPolicy",
            &["Delete", "Retain"],
            errors,
        );
        let modes = ["Immediate", "WaitForFirstConsumer"];
        one_of(
            class,
            "/volumeBindingMode",
            "volumeBindingMode",
            &modes,
            errors,
        );
    },
    validate_update: |new, old, errors| {
        if !same(&new["parameters"], &old["parameters"]) {
            errors.push(FieldError::forbidden(
                "parameters",
                "updates to parameters are forbidden.",
            ));
        }
        for field in ["provisioner", "reclaimPolicy"] {
            if new[field] != old[field] {
                let why = format!("updates to {field} are forbidden.");
                errors.push(FieldError::forbidden(field, why));
            }
        }
        immutable(new, old, &["/volumeBindingMode"], errors);
    },
    required: true,
    ..Strategy::PLAIN
};

pub const CSI_DRIVER: Strategy = Strategy {
    default: |driver| {
        defaults(
            driver,
            [
                ("/spec/attachRequired", json!(true)),
                ("/spec/podInfoOnMount", json!(false)),
                ("/spec/storageCapacity", json!(false)),
                ("/spec/fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
                ("/spec/volumeLifecycleModes", json!(["Persistent"])),
                ("/spec/requiresRepublish", json!(false)),
                ("/spec/seLinuxMount", json!(false)),
            ],
        );
    },
    // Begins without one, unlike other kinds.
    count: |new, old| {
        if !same(&new["spec"], &old["spec"]) {
            let generation = old.integer("/metadata/generation").unwrap_or(0);
            new.put("/metadata/generation", generation + 1);
        }
    },
    ..Strategy::PLAIN
};

pub const VOLUME_ATTACHMENT: Strategy = Strategy {
    prepare_create: |attachment| attachment.put("/status", json!({"attached": false})),
    ..super::CHECKED
};

fn access_modes(object: &Value, errors: &mut Vec<FieldError>) {
    let modes = object.items("/spec/accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required(
            "spec.accessModes",
            "at least 1 access mode is required",
        ));
    }
    for (at, mode) in modes.iter().enumerate() {
        one_of(
            mode,
            "",
            format!("spec.accessModes[{at}]"),
            &ACCESS_MODES,
            errors,
        );
    }
    let path = "spec.volumeMode";
    one_of(
        object,
        "/spec/volumeMode",
        path,
        &["Block", "Filesystem"],
        errors,
    );
}
