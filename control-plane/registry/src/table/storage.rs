//! The columns of volumes and of what makes them.

use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, age, column, count, name, or, or_none, wide};
use crate::json::Json;

const VOLUME_MODE: Column = wide("VolumeMode", "Filesystem or Block.");
const ATTRIBUTES: Column = column(
    "VolumeAttributesClass",
    "The class of the volume's attributes.",
);

pub const PERSISTENT_VOLUME: Printer = Printer {
    columns: &[
        NAME,
        column("Capacity", "The size of the volume."),
        column("Access Modes", "How the volume may be mounted."),
        column(
            "Reclaim Policy",
            "What becomes of the volume when its claim goes.",
        ),
        column("Status", "The phase of the volume."),
        column("Claim", "The claim that has the volume."),
        column("StorageClass", "The class of the volume."),
        ATTRIBUTES,
        column("Reason", "Why the volume is as it is."),
        AGE,
        VOLUME_MODE,
    ],
    row: |volume, now| {
        let claim = match volume.text("/spec/claimRef/name") {
            "" => String::new(),
            claim => format!("{}/{claim}", volume.text("/spec/claimRef/namespace")),
        };
        vec![
            name(volume),
            json!(volume.text("/spec/capacity/storage")),
            json!(access_modes(volume, "/spec/accessModes")),
            json!(volume.text("/spec/persistentVolumeReclaimPolicy")),
            phase(volume),
            json!(claim),
            json!(volume.text("/spec/storageClassName")),
            or(volume.text("/spec/volumeAttributesClassName"), "<unset>"),
            json!(volume.text("/status/reason")),
            age(volume, now),
            or(volume.text("/spec/volumeMode"), "<unset>"),
        ]
    },
    ..super::PLAIN
};

pub const PERSISTENT_VOLUME_CLAIM: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "The phase of the claim."),
        column("Volume", "The volume that the claim has."),
        column("Capacity", "The size of the volume."),
        column("Access Modes", "How the volume may be mounted."),
        column("StorageClass", "The class of the volume."),
        ATTRIBUTES,
        AGE,
        VOLUME_MODE,
    ],
    row: |claim, now| {
        let bound = !claim.text("/spec/volumeName").is_empty();
        let (modes, capacity) = if bound {
            (
                access_modes(claim, "/status/accessModes"),
                claim.text("/status/capacity/storage"),
            )
        } else {
            (String::new(), "")
        };
        vec![
            name(claim),
            phase(claim),
            json!(claim.text("/spec/volumeName")),
            json!(capacity),
            json!(modes),
            json!(claim.text("/spec/storageClassName")),
            or(claim.text("/spec/volumeAttributesClassName"), "<unset>"),
            age(claim, now),
            or(claim.text("/spec/volumeMode"), "<unset>"),
        ]
    },
    ..super::PLAIN
};

pub const STORAGE_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Provisioner", "Who makes volumes of this class."),
        column(
            "ReclaimPolicy",
            "What becomes of a volume when its claim goes.",
        ),
        column("VolumeBindingMode", "When a volume is made."),
        column("AllowVolumeExpansion", "Whether volumes can grow."),
        AGE,
    ],
    row: |class, now| {
        let by_default = "/metadata/annotations/storageclass.kubernetes.io~1is-default-class";
        let mark = if class.text(by_default) == "true" {
            " (default)"
        } else {
            ""
        };
        vec![
            json!(format!("{}{mark}", class.text("/metadata/name"))),
            class["provisioner"].clone(),
            class["reclaimPolicy"].clone(),
            class["volumeBindingMode"].clone(),
            json!(class.flag("/allowVolumeExpansion")),
            age(class, now),
        ]
    },
    ..super::PLAIN
};

pub const CSI_DRIVER: Printer = Printer {
    columns: &[
        NAME,
        column(
            "AttachRequired",
            "Whether volumes are attached before they are mounted.",
        ),
        column("PodInfoOnMount", "Whether the driver is told of the pod."),
        column(
            "StorageCapacity",
            "Whether the driver says how much it can hold.",
        ),
        column(
            "TokenRequests",
            "The audiences of the tokens that the driver wants.",
        ),
        column(
            "RequiresRepublish",
            "Whether volumes are published again and again.",
        ),
        column("Modes", "The life cycles of its volumes."),
        AGE,
    ],
    row: |driver, now| {
        let flag = |field: &str| json!(driver.flag(&format!("/spec/{field}")));
        let audiences: Vec<&str> = driver
            .items("/spec/tokenRequests")
            .iter()
            .map(|r| r.text("/audience"))
            .collect();
        let audiences = audiences.join(",");
        vec![
            name(driver),
            flag("attachRequired"),
            flag("podInfoOnMount"),
            flag("storageCapacity"),
            or(&audiences, "<unset>"),
            flag("requiresRepublish"),
            or_none(&words(driver.items("/spec/volumeLifecycleModes"))),
            age(driver, now),
        ]
    },
    ..super::PLAIN
};

pub const CSI_NODE: Printer = Printer {
    columns: &[
        NAME,
        count("Drivers", "The number of drivers on the node."),
        AGE,
    ],
    row: |node, now| {
        let drivers = node.items("/spec/drivers").len();
        vec![name(node), json!(drivers), age(node, now)]
    },
    ..super::PLAIN
};

pub const VOLUME_ATTACHMENT: Printer = Printer {
    columns: &[
        NAME,
        column("Attacher", "The driver that attaches."),
        column("PV", "The volume."),
        column("Node", "Where the volume should be."),
        column("Attached", "Whether it is there."),
        AGE,
    ],
    row: |attachment, now| {
        vec![
            name(attachment),
            json!(attachment.text("/spec/attacher")),
            json!(attachment.text("/spec/source/persistentVolumeName")),
            json!(attachment.text("/spec/nodeName")),
            json!(attachment.flag("/status/attached")),
            age(attachment, now),
        ]
    },
    ..super::PLAIN
};

pub const ATTRIBUTES_CLASS: Printer = Printer {
    columns: &[NAME, column("DriverName", "The driver of the class."), AGE],
    row: |class, now| {
        vec![
            name(class),
            json!(class.text("/driverName")),
            age(class, now),
        ]
    },
    ..super::PLAIN
};

fn phase(object: &Value) -> Value {
    let going = object.has("/metadata/deletionTimestamp");
    json!(if going {
        "Terminating"
    } else {
        object.text("/status/phase")
    })
}

fn words(items: &[Value]) -> String {
    let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
    texts.join(",")
}

fn access_modes(object: &Value, pointer: &str) -> String {
    let short = object
        .items(pointer)
        .iter()
        .map(|mode| match mode.as_str() {
            Some("ReadWriteOnce") => "RWO",
            Some("ReadOnlyMany") => "ROX",
            Some("ReadWriteMany") => "RWX",
            Some("ReadWriteOncePod") => "RWOP",
            other => other.unwrap_or_default(),
        });
    short.collect::<Vec<_>>().join(",")
}
