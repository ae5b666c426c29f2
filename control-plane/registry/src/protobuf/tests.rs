//! What clients send, written out by hand, and whatever else may come.

use proptest::prelude::*;

use super::*;

fn varint_of(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).unwrap();
        number >>= 7;
        if number == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint_of(field << 3), varint_of(value)].concat()
}

fn part(field: u64, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    let length = varint_of(bytes.len() as u64);
    [varint_of(field << 3 | 2), length, bytes.to_vec()].concat()
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [part(1, api_version), part(2, kind)].concat();
    [
        MAGIC.to_vec(),
        part(1, meta),
        part(2, raw),
        part(3, ""),
        part(4, ""),
    ]
    .concat()
}

#[test]
fn a_deployment_of_zero_replicas() {
    let port = [
        part(1, ""),
        number(2, 0),
        number(3, 80),
        part(4, ""),
        part(5, ""),
    ]
    .concat();
    let limits = [part(1, "cpu"), part(2, part(1, "100m"))].concat();
    let container = [
        part(1, "c"),
        part(2, "busybox"),
        part(6, port),
        part(8, part(1, limits)),
        part(14, ""),
    ]
    .concat();
    let volume = [part(1, "v"), part(2, part(2, ""))].concat();
    let pod = [
        part(1, volume),
        part(2, container),
        part(3, ""),
        number(11, 0),
    ]
    .concat();
    let labels = [part(1, "app"), part(2, "")].concat();
    let created = part(8, "");
    let template = [part(1, [part(11, labels), created].concat()), part(2, pod)].concat();
    let strategy = part(
        2,
        part(1, [number(1, 1), number(2, 0), part(3, "25%")].concat()),
    );
    let spec = [
        number(1, 0),
        part(3, template),
        part(4, strategy),
        number(5, 0),
    ]
    .concat();
    let raw = [part(1, part(1, "web")), part(2, spec), part(3, "")].concat();
    let body = decode(&envelope("apps/v1", "Deployment", &raw)).unwrap();
    assert_eq!(body.found, [""; 0]);
    assert_eq!(
        body.value,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "status": {}, "spec": {
            "replicas": 0,
            "strategy": {"rollingUpdate": {"maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": {"app": ""}},
                "spec": {
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "containers": [{"name": "c", "image": "busybox", "ports": [{"containerPort": 80}],
                        "resources": {"limits": {"cpu": "100m"}}}],
                },
            },
        }})
    );
}

#[test]
fn secrets_times_and_options() {
    let data = [part(1, "a"), part(2, [1u8, 2])].concat();
    let raw = [part(1, part(1, "s")), part(2, data), part(3, "Opaque")].concat();
    let secret = decode(&envelope("v1", "Secret", &raw)).unwrap().value;
    assert_eq!(secret["data"], json!({"a": "AQI="}));
    let renewed = [number(1, 1_700_000_000), number(2, 5000)].concat();
    let raw = part(2, [part(1, "n"), part(4, renewed)].concat());
    let lease = decode(&envelope("coordination.k8s.io/v1", "Lease", &raw))
        .unwrap()
        .value;
    assert_eq!(
        lease["spec"],
        json!({"holderIdentity": "n", "renewTime": "2023-11-14T22:13:20.000005Z"})
    );
    let raw = [number(1, 0), part(4, "Background")].concat();
    let options = decode(&envelope("v1", "DeleteOptions", &raw))
        .unwrap()
        .value;
    assert_eq!(
        (
            &options["gracePeriodSeconds"],
            &options["propagationPolicy"]
        ),
        (&json!(0), &json!("Background"))
    );
}

#[test]
fn a_definition_with_its_schema() {
    // openAPIV3Schema {type: object, properties: {n: {type: integer, minimum: 0}, l: {items: {type: string}},
    // m: {additionalProperties: true}}}
    let zero = [varint_of(11 << 3 | 1), 0f64.to_le_bytes().to_vec()].concat();
    let n = [part(5, "integer"), zero].concat();
    let l = part(24, part(1, part(5, "string")));
    let m = part(30, number(1, 1));
    let property = |name: &str, of: &[u8]| part(29, [part(1, name), part(2, of)].concat());
    let schema = [
        part(5, "object"),
        property("n", &n),
        property("l", &l),
        property("m", &m),
    ]
    .concat();
    let version = [
        part(1, "v1"),
        number(2, 1),
        number(3, 1),
        part(4, part(1, schema)),
    ]
    .concat();
    let raw = part(2, part(7, version));
    let definition = decode(&envelope(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        &raw,
    ))
    .unwrap()
    .value;
    assert_eq!(
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"],
        json!({"n": {"type": "integer", "minimum": 0.0}, "l": {"items": {"type": "string"}}, "m": {"additionalProperties": true}})
    );
}

#[test]
fn nonsense_is_refused_and_named() {
    for (bytes, want) in [
        (b"{}".to_vec(), "does not begin with"),
        (
            envelope("v9", "Pod", b""),
            "no type \"Pod\" in version \"v9\"",
        ),
        (
            envelope("v1", "Pod", b"\x0a\xff"),
            "in the middle of a field",
        ),
        (
            envelope("v1", "Pod", &part(1, number(1, 1))),
            "ObjectMeta.name: a string cannot be",
        ),
    ] {
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.contains(want), "{}", error.message);
    }
    let body = decode(&envelope("v1", "Pod", &number(99, 1))).unwrap();
    assert_eq!(body.found, ["unknown field number 99 of Pod"]);
}

proptest! {
    #[test]
    fn no_bytes_do_harm(raw in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..4usize) {
        let (version, kind) = [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "DeleteOptions"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition")][kind];
        drop(decode(&envelope(version, kind, &raw)));
        drop(decode(&raw));
    }

    #[test]
    fn deep_nesting_is_refused(depth in 70..400usize) {
        let mut schema = part(5, "object");
        for _ in 0..depth {
            schema = part(28, &schema);
        }
        let raw = part(2, part(7, part(4, part(1, schema))));
        let error = decode(&envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", &raw)).unwrap_err();
        prop_assert!(error.message.contains("nested deeper"), "{}", error.message);
    }
}
