//! Drawing requests: from words that lead somewhere, and from good objects with something wrong in them.

use http::Method;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde::Deserialize as _;
use serde_json::{Map, Value};

/// One request.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub method: Method,
    pub uri: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

/// Words that lead somewhere.
const WORDS: &[&str] = &[
    "$deleteFromPrimitiveList/finalizers",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "apiVersion",
    "containerPort",
    "containers",
    "data",
    "finalizers",
    "image",
    "kind",
    "labels",
    "managedFields",
    "metadata",
    "name",
    "ports",
    "replicas",
    "selector",
    "matchLabels",
    "spec",
    "template",
    "versions",
    "schema",
    "delete",
    "replace",
    "op",
    "copy",
    "move",
    "test",
    "from",
    "path",
    "/spec/replicas",
    "/metadata/labels",
    "value",
    "fieldsV1",
    "k:{\"name\":1}",
    "operation",
    "Apply",
];

const PATHS: &[&str] = &[
    "/api/v1/namespaces/default/configmaps",
    "/api/v1/namespaces/default/configmaps/settings",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces/default/pods/p",
    "/api/v1/namespaces/default/pods/p/eviction",
    "/api/v1/namespaces/default/pods/p/binding",
    "/api/v1/namespaces/default/pods/p/status",
    "/api/v1/namespaces/default/services",
    "/api/v1/namespaces/default/services/web",
    "/api/v1/namespaces/default/bindings",
    "/api/v1/namespaces/shop/finalize",
    "/api/v1/nodes/n1/status",
    "/apis/apps/v1/namespaces/default/deployments",
    "/apis/apps/v1/namespaces/default/deployments/web",
    "/apis/apps/v1/namespaces/default/deployments/web/scale",
    "/apis/apps/v1/namespaces/default/deployments/web/status",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.com",
    "/apis/example.com/v1/namespaces/default/widgets",
    "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/web",
    "/apis/batch/v1/namespaces/default/cronjobs",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "/openapi/v3/apis/apps/v1",
    "/openapi/v2",
    "/apis",
    "/version",
];

const TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/cbor",
    "text/plain; charset=x",
];

const PARAMETERS: &[&str] = &[
    "labelSelector",
    "fieldSelector",
    "limit",
    "continue",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "allowWatchBookmarks",
    "dryRun",
    "fieldManager",
    "force",
    "fieldValidation",
    "propagationPolicy",
    "gracePeriodSeconds",
    "includeObject",
    "pretty",
    "hash",
    "tailLines",
    "sinceSeconds",
];

const METHODS: [Method; 7] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::HEAD,
    Method::OPTIONS,
];

const MANIFESTS: [&str; 3] = [
    include_str!("../../../../tests/kubectl/tests/manifests/core.yaml"),
    include_str!("../../../../tests/kubectl/tests/manifests/workloads.yaml"),
    include_str!("../../../../tests/kubectl/tests/manifests/cluster.yaml"),
];

/// One good object of each kind, with the path of its collection.
pub fn objects() -> Vec<(String, Value)> {
    let documents = MANIFESTS
        .iter()
        .flat_map(|text| serde_yaml_ng::Deserializer::from_str(text));
    let objects = documents.map(|document| Value::deserialize(document).expect("a manifest"));
    objects
        .map(|object| (collection(&object), object))
        .collect()
}

fn collection(object: &Value) -> String {
    let text = |name: &str| object[name].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion")
        .split_once('/')
        .unwrap_or(("", text("apiVersion")));
    let mut kinds = control_plane_registry::kinds::all();
    let kind = kinds
        .find(|k| (k.group, k.version, k.kind) == (group, version, text("kind")))
        .expect("a kind that is served");
    let root = if group.is_empty() { "/api" } else { "/apis" };
    let namespace = if kind.namespaced {
        "/namespaces/default"
    } else {
        ""
    };
    format!("{root}/{}{namespace}/{}", text("apiVersion"), kind.plural)
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        select(WORDS).prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        let entry = (select(WORDS), inner.clone());
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            proptest::collection::vec(entry, 0..6).prop_map(|entries| {
                let entries = entries.into_iter().map(|(k, v)| (k.to_owned(), v));
                Value::Object(entries.collect::<Map<_, _>>())
            }),
        ]
    })
}

/// Only what may stand in a URI.
fn query() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        "[a-z0-9=!,()%+.-]{0,12}",
        "(%[0-9a-f]{2}){1,6}",
        any::<u64>().prop_map(|number| number.to_string()),
        Just("All".to_owned()),
        Just("true".to_owned()),
        Just("-1".to_owned()),
    ];
    proptest::collection::vec((select(PARAMETERS), value), 0..4).prop_map(|pairs| {
        let pairs: Vec<String> = pairs
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        pairs.join("&")
    })
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let media = prop_oneof![
        9 => select(TYPES).prop_map(ToOwned::to_owned),
        1 => "[ -~]{0,30}",
    ];
    let accept = prop_oneof![
        6 => Just(String::new()),
        1 => Just("application/json;as=Table;v=v1;g=meta.k8s.io".to_owned()),
        1 => Just("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io".to_owned()),
        1 => "[ -~]{0,40}",
    ];
    (media, accept).prop_map(|(media, accept)| {
        let all = [("content-type", media), ("accept", accept)];
        all.into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect()
    })
}

/// Words of the API in bodies and queries on paths of the API.
pub fn requests() -> impl Strategy<Value = Drawn> {
    let body = prop_oneof![
        6 => json().prop_map(|value| value.to_string().into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        1 => Just(Vec::new()),
    ];
    (
        select(METHODS.to_vec()),
        select(PATHS),
        headers(),
        query(),
        body,
    )
        .prop_map(|(method, path, headers, query, body)| Drawn {
            method,
            uri: format!("{path}?{query}"),
            headers,
            body,
        })
}

/// A good object with up to three of its values replaced, created, updated, patched or applied.
pub fn mutated_objects() -> impl Strategy<Value = Drawn> {
    let change = (any::<Index>(), json());
    let changes = proptest::collection::vec(change, 1..4);
    let media = select(TYPES[..7].to_vec());
    (
        any::<Index>(),
        changes,
        select(METHODS[1..4].to_vec()),
        media,
    )
        .prop_map(|(which, changes, method, media)| {
            let objects = objects();
            let (collection, mut object) = objects[which.index(objects.len())].clone();
            let name = object["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            for (place, value) in changes {
                let places = pointers(&object);
                let place = &places[place.index(places.len())];
                if let Some(found) = object.pointer_mut(place) {
                    *found = value;
                }
            }
            let creates = method == Method::POST;
            // Bodies are no patches, and patches no bodies.
            let media = if method == Method::PATCH {
                media
            } else {
                "application/json"
            };
            Drawn {
                uri: if creates {
                    format!("{collection}?fieldValidation=Ignore")
                } else {
                    let force = if media.contains("apply") { "&force=1" } else { "" };
                    format!("{collection}/{name}?dryRun=All&fieldValidation=Ignore&fieldManager=f{force}")
                },
                method,
                headers: vec![("content-type", media.to_owned())],
                body: object.to_string().into_bytes(),
            }
        })
}

/// Where values stand, as JSON pointers.
fn pointers(value: &Value) -> Vec<String> {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(at, v)| (at.to_string(), v))
            .collect(),
        _ => Vec::new(),
    };
    let inner = below.iter().flat_map(|(key, value)| {
        pointers(value)
            .into_iter()
            .map(move |rest| format!("/{key}{rest}"))
    });
    std::iter::once(String::new()).chain(inner).collect()
}

/// Lists, gets and short watches with paths, selectors and tokens that make little sense.
pub fn reads() -> impl Strategy<Value = Drawn> {
    let segment = prop_oneof![
        4 => select(&["api", "apis", "v1", "apps", "namespaces", "default", "pods", "p", "status", "scale", "watch", "deployments"][..]).prop_map(ToOwned::to_owned),
        1 => "(%[0-9a-f]{2}|[a-z.]){0,6}",
        1 => Just("..".to_owned()),
        1 => Just(String::new()),
    ];
    let free =
        proptest::collection::vec(segment, 0..8).prop_map(|parts| format!("/{}", parts.join("/")));
    let path = prop_oneof![2 => select(PATHS).prop_map(ToOwned::to_owned), 1 => free];
    (path, query(), proptest::bool::weighted(0.06), headers()).prop_map(
        |(path, query, watches, headers)| {
            // A watch must end by itself; the last value counts.
            let watch = if watches { "&watch=1" } else { "" };
            Drawn {
                method: Method::GET,
                uri: format!("{path}?{query}{watch}&timeoutSeconds=1"),
                headers,
                body: Vec::new(),
            }
        },
    )
}
