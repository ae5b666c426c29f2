//! What the client wants to read (`Accept`) and what it sends (`Content-Type`).

use control_plane_registry::ApiError;
use control_plane_registry::PatchType;
use control_plane_registry::decode::Format;
use control_plane_registry::errors::Result;
use http::{HeaderMap, header};

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The objects themselves.
    Object,
    /// `as=Table`.
    Table,
    /// `as=PartialObjectMetadata` or `as=PartialObjectMetadataList`.
    Metadata,
}

/// Which discovery documents the client reads.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

const BODIES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    STRATEGIC,
    "application/apply-patch+yaml",
];

/// One entry of an `Accept` header.
struct Accepted<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Accepted<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        Self {
            media: parts.next().unwrap_or_default(),
            parameters: parts.filter_map(|p| p.split_once('=')).collect(),
        }
    }

    fn parameter(&self, name: &str) -> &'a str {
        let found = self.parameters.iter().find(|(n, _)| *n == name);
        found.map_or("", |(_, value)| value)
    }

    fn is_json(&self) -> bool {
        matches!(self.media, "application/json" | "application/*" | "*/*")
    }
}

fn accepted(headers: &HeaderMap) -> impl Iterator<Item = Accepted<'_>> {
    headers
        .get_all(header::ACCEPT)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(Accepted::parse)
}

/// The first form that the client accepts and that we have.
///
/// # Errors
/// 406 when there is none.
pub fn shape(headers: &HeaderMap) -> Result<Shape> {
    if !headers.contains_key(header::ACCEPT) {
        return Ok(Shape::Object);
    }
    for entry in accepted(headers).filter(Accepted::is_json) {
        let meta = entry.parameter("g") == "meta.k8s.io" && entry.parameter("v") == "v1";
        match entry.parameter("as") {
            "" => return Ok(Shape::Object),
            "Table" if meta => return Ok(Shape::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if meta => {
                return Ok(Shape::Metadata);
            }
            _ => {}
        }
    }
    Err(ApiError::not_acceptable(&[
        "application/json",
        "application/json;as=Table;v=v1;g=meta.k8s.io",
        "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    ]))
}

/// Whether the client reads aggregated discovery and prefers it.
pub fn wants_aggregated(headers: &HeaderMap) -> bool {
    accepted(headers)
        .find(|e| e.is_json() && (e.parameter("as").is_empty() || e.parameter("v") == "v2"))
        .is_some_and(|e| {
            e.parameter("g") == "apidiscovery.k8s.io"
                && e.parameter("as") == "APIGroupDiscoveryList"
        })
}

/// The format of a body; one without type is JSON.
///
/// # Errors
/// 415 for anything else.
pub fn format(headers: &HeaderMap) -> Result<Format> {
    match media_type(headers) {
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Format::Protobuf),
        _ => Err(ApiError::unsupported_media_type(&BODIES)),
    }
}

/// The type of a patch; `None` for server-side apply.
///
/// # Errors
/// 415 for anything else.
pub fn patch_type(headers: &HeaderMap) -> Result<Option<PatchType>> {
    match media_type(headers) {
        "application/apply-patch+yaml" => Ok(None),
        "application/json-patch+json" => Ok(Some(PatchType::Json)),
        "application/merge-patch+json" => Ok(Some(PatchType::Merge)),
        "application/strategic-merge-patch+json" => Ok(Some(PatchType::Strategic)),
        _ => Err(ApiError::unsupported_media_type(&PATCHES)),
    }
}

/// Custom resources have no merge keys.
pub fn no_strategic_patch() -> ApiError {
    let others: Vec<&str> = PATCHES
        .into_iter()
        .filter(|media| *media != STRATEGIC)
        .collect();
    ApiError::unsupported_media_type(&others)
}

fn media_type(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, text.parse().unwrap());
        headers
    }

    #[test]
    fn what_clients_accept() {
        for (text, want) in [
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Shape::Table),
            ),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Some(Shape::Object),
            ),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some(Shape::Metadata),
            ),
            ("*/*", Some(Shape::Object)),
            ("application/json;as=Table;v=v9;g=meta.k8s.io", None),
            ("image/png", None),
        ] {
            assert_eq!(shape(&accept(text)).ok(), want, "{text}");
        }
        assert_eq!(shape(&HeaderMap::new()).unwrap(), Shape::Object);
    }

    #[test]
    fn discovery() {
        assert!(wants_aggregated(&accept(&format!(
            "{AGGREGATED},application/json"
        ))));
        let kube_rs = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert!(wants_aggregated(&accept(kube_rs)));
        assert!(!wants_aggregated(&accept("application/json")));
        assert!(!wants_aggregated(&accept(
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        )));
    }
}
