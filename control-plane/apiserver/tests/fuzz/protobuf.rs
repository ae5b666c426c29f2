//! Drawing protobuf: envelopes of Kubernetes around messages whose fields are numbered as real ones and filled at random.

use http::Method;
use proptest::prelude::*;
use proptest::sample::select;

use crate::draw::Drawn;

const KINDS: &[(&str, &str, &str)] = &[
    ("v1", "ConfigMap", "/api/v1/namespaces/default/configmaps"),
    ("v1", "Pod", "/api/v1/namespaces/default/pods"),
    ("v1", "Service", "/api/v1/namespaces/default/services"),
    ("v1", "Secret", "/api/v1/namespaces/default/secrets"),
    (
        "apps/v1",
        "Deployment",
        "/apis/apps/v1/namespaces/default/deployments",
    ),
    (
        "apps/v1",
        "ControllerRevision",
        "/apis/apps/v1/namespaces/default/controllerrevisions",
    ),
    (
        "batch/v1",
        "CronJob",
        "/apis/batch/v1/namespaces/default/cronjobs",
    ),
    (
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
    ),
    (
        "networking.k8s.io/v1",
        "Ingress",
        "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
    ),
    (
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    ),
    (
        "meta.k8s.io/v1",
        "DeleteOptions",
        "/api/v1/namespaces/default/configmaps/settings",
    ),
    (
        "authorization.k8s.io/v1",
        "SelfSubjectAccessReview",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    ),
];

/// A message: fields of every wire type, and messages in messages (protobuf.dev/programming-guides/encoding).
fn message() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![8 => 1u64..32, 1 => any::<u64>()];
    let leaf = prop_oneof![
        any::<u64>().prop_map(|value| (0, varint(value))),
        any::<[u8; 8]>().prop_map(|bytes| (1, bytes.to_vec())),
        any::<[u8; 4]>().prop_map(|bytes| (5, bytes.to_vec())),
        "[a-z]{0,8}".prop_map(|text| (2, delimited(text.as_bytes()))),
        proptest::collection::vec(any::<u8>(), 0..12).prop_map(|bytes| (2, delimited(&bytes))),
        // The wire types of groups, and those that are none.
        (3u64..8).prop_map(|wire| (wire, Vec::new())),
    ];
    let field = (number, leaf).prop_map(|(number, (wire, value))| {
        [varint(number.wrapping_shl(3) | wire), value].concat()
    });
    field.prop_recursive(8, 64, 6, |inner| {
        (1u64..32, proptest::collection::vec(inner, 0..6)).prop_map(|(number, fields)| {
            [varint(number << 3 | 2), delimited(&fields.concat())].concat()
        })
    })
}

/// POST and DELETE with such bodies, now and then cut short.
pub fn requests() -> impl Strategy<Value = Drawn> {
    let fields = proptest::collection::vec(message(), 0..6);
    (select(KINDS), fields, any::<bool>(), 0usize..400).prop_map(
        |((version, kind, path), fields, cut, length)| {
            let type_meta = [tagged(1, version.as_bytes()), tagged(2, kind.as_bytes())].concat();
            let raw = fields.concat();
            let mut body = [b"k8s\0".to_vec(), tagged(1, &type_meta), tagged(2, &raw)].concat();
            if cut {
                body.truncate(length);
            }
            Drawn {
                method: if kind == "DeleteOptions" {
                    Method::DELETE
                } else {
                    Method::POST
                },
                uri: format!("{path}?dryRun=All"),
                headers: vec![(
                    "content-type",
                    "application/vnd.kubernetes.protobuf".to_owned(),
                )],
                body,
            }
        },
    )
}

fn tagged(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), delimited(bytes)].concat()
}

fn delimited(bytes: &[u8]) -> Vec<u8> {
    [varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}
