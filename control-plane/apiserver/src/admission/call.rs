//! One question to a webhook: an `AdmissionReview` over HTTPS, to a URL or to a pod of a Service.

use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use control_plane_registry::json::Json;
use control_plane_registry::kinds;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::hooks::{Hook, Service};
use crate::Api;
use crate::connect::{kubelet, pod, tunnel};
use crate::{spans, tls};

/// As much of an answer as is read, in bytes: an object and what was changed of it.
const ANSWER_MAX: usize = 3 << 20;

/// What a webhook says.
#[derive(Debug, Default)]
pub struct Verdict {
    pub allowed: bool,
    /// The hook's own `Status`, when it refuses.
    pub status: Value,
    /// A JSON patch; null for none.
    pub patch: Value,
    /// For the client's user.
    pub warnings: Vec<String>,
}

/// Where a hook is.
struct Place {
    host: String,
    path: String,
}

/// Asks `hook` by `request`, the `request` of an `AdmissionReview`.
///
/// # Errors
/// Why there is no answer.
pub async fn ask(api: &Api, hook: &Hook, request: &Value) -> Result<Verdict, String> {
    let time = Duration::from_secs(hook.timeout_seconds.clamp(1, 30));
    let answer = tokio::time::timeout(time, exchange(api, hook, request));
    let answer = answer
        .await
        .map_err(|_| format!("no answer within {} s", time.as_secs()))??;
    let response = &answer["response"];
    if answer["kind"] != "AdmissionReview" || response["uid"] != request["uid"] {
        return Err("the answer is no AdmissionReview with the uid of the question".to_owned());
    }
    let patch = match response.text("/patch") {
        "" => Value::Null,
        _ if response.text("/patchType") != "JSONPatch" => {
            return Err("the answer has a patch that is no JSONPatch".to_owned());
        }
        text => {
            let bytes = STANDARD.decode(text).map_err(|e| format!("patch: {e}"))?;
            serde_json::from_slice(&bytes).map_err(|e| format!("patch: {e}"))?
        }
    };
    let warnings = response.items("/warnings").iter().filter_map(Value::as_str);
    Ok(Verdict {
        allowed: response.flag("/allowed"),
        status: response["status"].clone(),
        patch,
        warnings: warnings.map(ToOwned::to_owned).collect(),
    })
}

async fn exchange(api: &Api, hook: &Hook, request: &Value) -> Result<Value, String> {
    let review = json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": request,
    });
    let config = &hook.client_config;
    if config.ca_bundle.is_empty() {
        return Err("clientConfig.caBundle is empty, and this server trusts no authority by itself: give the one of the webhook's certificate".to_owned());
    }
    let roots = STANDARD.decode(&config.ca_bundle);
    let roots = roots.map_err(|error| format!("clientConfig.caBundle: {error}"))?;
    if let Some(service) = &config.service {
        let (stream, place) = to_service(api, service).await?;
        let stream = tls::connect(stream, &place.host, &roots).await?;
        return post(stream, &place, &review).await;
    }
    let url = config.url.as_deref().unwrap_or_default();
    let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let stream = TcpStream::connect((host.as_str(), port)).await;
    let stream = stream.map_err(|error| format!("connect to {host}:{port}: {error}"))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let place = Place {
        path: path.to_owned(),
        host,
    };
    let stream = tls::connect(stream, &place.host, &roots).await?;
    post(stream, &place, &review).await
}

/// A way to a pod of the Service, through its node's kubelet: pods' addresses lead nowhere from here.
async fn to_service(
    api: &Api,
    service: &Service,
) -> Result<(impl AsyncRead + AsyncWrite + Unpin + Send + 'static, Place), String> {
    let (pod, port) = endpoint(api, service)?;
    let pod = pod::Pod::find(api, &service.namespace, &pod).await;
    let pod = pod.map_err(|error| error.to_string())?;
    let kubelet = kubelet::Kubelet::of_node(api, pod.node()).await;
    let kubelet = kubelet.map_err(|error| error.to_string())?;
    let way = pod.port_forward_to(&[&port.to_string()]);
    let tunnel = tunnel::open(&kubelet, &way).await;
    let tunnel = tunnel.map_err(|error| error.to_string())?;
    let path = match service.path.as_str() {
        "" => "/",
        path => path,
    };
    let place = Place {
        host: format!("{}.{}.svc", service.name, service.namespace),
        path: path.to_owned(),
    };
    Ok((tunnel.stream, place))
}

/// The name of a pod that is ready behind a port of the Service, and the pod's port.
fn endpoint(api: &Api, service: &Service) -> Result<(String, i64), String> {
    let find = |group, plural| {
        kinds::find(group, "v1", plural)
            .expect("the table of kinds has Services and EndpointSlices")
    };
    let shown = format!("service {}/{}", service.namespace, service.name);
    let object = api
        .registry
        .peek(find("", "services"), &service.namespace, &service.name);
    let object = object
        .ok_or_else(|| format!("{shown} is not there"))?
        .value();
    let ports = object.items("/spec/ports").iter();
    let port = ports
        .filter(|port| port.integer("/port") == Some(i64::from(service.port)))
        .map(|port| port.text("/name").to_owned())
        .next()
        .ok_or_else(|| format!("{shown} has no port {}", service.port))?;
    let slices = api
        .registry
        .objects(find("discovery.k8s.io", "endpointslices"));
    for slice in slices {
        let own = *slice.namespace == *service.namespace
            && slice.label("kubernetes.io/service-name") == Some(&service.name);
        if !own {
            continue;
        }
        let slice = slice.value();
        let mut ports = slice.items("/ports").iter();
        let number = ports
            .find(|p| p.text("/name") == port)
            .and_then(|p| p.integer("/port"));
        let mut ready = slice.items("/endpoints").iter().filter(|endpoint| {
            endpoint.flag("/conditions/ready") && endpoint.text("/targetRef/kind") == "Pod"
        });
        if let (Some(number), Some(endpoint)) = (number, ready.next()) {
            return Ok((endpoint.text("/targetRef/name").to_owned(), number));
        }
    }
    Err(format!("{shown} has no pod that is ready"))
}

async fn post(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    place: &Place,
    review: &Value,
) -> Result<Value, String> {
    let mut request = Request::post(&place.path)
        .body(Body::from(review.to_string()))
        .map_err(|error| error.to_string())?;
    let json = HeaderValue::from_static("application/json");
    request
        .headers_mut()
        .insert(header::CONTENT_TYPE, json.clone());
    request.headers_mut().insert(header::ACCEPT, json);
    spans::propagate(request.headers_mut());
    let answer = kubelet::exchange(stream, &place.host, request).await;
    let answer = answer.map_err(|error| chain(&error))?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("the answer is {status}"));
    }
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
