//! The healthCheckNodePorts: load balancers ask there whether this node has endpoints of a Service.
//!
//! Answers what kube-proxy answers, body and headers:
//! <https://kubernetes.io/docs/reference/networking/virtual-ips/#external-traffic-policy>

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use node_agent_model::ObjectName;
use node_agent_reconcile::HealthChecks;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::readiness::Readiness;

/// A port that somebody else has may become free.
const RETRY: Duration = Duration::from_secs(5);

/// One port that is listened on; closed when it is dropped.
struct Server {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    task: AbortHandle,
}

/// What an answer is made of.
#[derive(Clone)]
struct Asked {
    service: ObjectName,
    local_endpoints: Arc<AtomicUsize>,
    readiness: Arc<Readiness>,
}

/// Serves until the reconciler is gone.
pub async fn run(mut checks: watch::Receiver<HealthChecks>, readiness: Arc<Readiness>) {
    let mut servers: BTreeMap<ObjectName, Server> = BTreeMap::new();
    loop {
        let wanted = checks.borrow_and_update().clone();
        servers.retain(|name, server| {
            wanted
                .get(name)
                .is_some_and(|check| check.port == server.port)
        });
        let mut failed = false;
        for (name, check) in wanted {
            let count = check.local_endpoints;
            if let Some(server) = servers.get(&name) {
                server.local_endpoints.store(count, Ordering::Relaxed);
                continue;
            }
            match Server::start(&name, check.port, count, &readiness).await {
                Ok(server) => {
                    info!(service = %name, port = check.port, "health check is served");
                    servers.insert(name, server);
                }
                Err(error) => {
                    warn!(service = %name, port = check.port, %error, "health check cannot be served, trying again");
                    failed = true;
                }
            }
        }
        let ended = tokio::select! {
            changed = checks.changed() => changed.is_err(),
            () = tokio::time::sleep(RETRY), if failed => false,
        };
        if ended {
            return;
        }
    }
}

impl Server {
    async fn start(
        service: &ObjectName,
        port: u16,
        count: usize,
        readiness: &Arc<Readiness>,
    ) -> std::io::Result<Self> {
        // One socket takes both families, unless the kernel has but one.
        let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Err(error) if error.raw_os_error() == Some(EAFNOSUPPORT) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?
            }
            bound => bound?,
        };
        let local_endpoints = Arc::new(AtomicUsize::new(count));
        let app = Router::new().fallback(answer).with_state(Asked {
            service: service.clone(),
            local_endpoints: local_endpoints.clone(),
            readiness: readiness.clone(),
        });
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                warn!(port, %error, "the health check's server ended");
            }
        });
        Ok(Self {
            port,
            local_endpoints,
            task: task.abort_handle(),
        })
    }
}

/// `errno` where the kernel has no IPv6.
const EAFNOSUPPORT: i32 = 97;

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Every path and method gets the same answer.
async fn answer(State(asked): State<Asked>) -> Response {
    let count = asked.local_endpoints.load(Ordering::Relaxed);
    let healthy = asked.readiness.is_healthy();
    let body = json!({
        "service": {"namespace": asked.service.namespace, "name": asked.service.name},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    });
    let status = match count > 0 && healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/json".to_owned()),
        (
            header::X_CONTENT_TYPE_OPTIONS.as_str(),
            "nosniff".to_owned(),
        ),
        ("x-load-balancing-endpoint-weight", count.to_string()),
    ];
    (status, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use node_agent_model::HealthCheck;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// The whole answer, or nothing if nobody listens.
    async fn ask(addr: &str) -> Option<String> {
        let mut stream = TcpStream::connect(addr).await.ok()?;
        let request = "GET /anything HTTP/1.0\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        Some(text)
    }

    /// Asks until the answer holds `part` (nobody answers, if it is empty).
    async fn wait_for(addr: &str, part: &str) -> String {
        for _ in 0..200 {
            match ask(addr).await {
                Some(text) if !part.is_empty() && text.contains(part) => return text,
                None if part.is_empty() => return String::new(),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("{addr} never said {part:?}: {:?}", ask(addr).await);
    }

    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("[::]:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn a_load_balancer_learns_whether_this_node_has_endpoints() {
        let (sender, checks) = watch::channel(HealthChecks::new());
        let readiness = Arc::new(Readiness::default());
        readiness.started();
        tokio::spawn(run(checks, readiness.clone()));
        let name = ObjectName::new("shop", "web");
        let port = free_port();
        let addr = format!("127.0.0.1:{port}");
        let set = |port, local_endpoints| {
            let check = HealthCheck {
                port,
                local_endpoints,
            };
            sender.send_modify(|checks| {
                checks.insert(name.clone(), check);
            });
        };
        set(port, 2);
        let answer = wait_for(&addr, "\"localEndpoints\":2").await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(
            answer.contains("content-type: application/json\r\n"),
            "{answer}"
        );
        assert!(
            answer.contains("x-content-type-options: nosniff\r\n"),
            "{answer}"
        );
        assert!(
            answer.contains("x-load-balancing-endpoint-weight: 2\r\n"),
            "{answer}"
        );
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(body).unwrap(),
            json!({"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true})
        );
        set(port, 0);
        let answer = wait_for(&addr, "\"localEndpoints\":0").await;
        assert!(answer.starts_with("HTTP/1.0 503"), "{answer}");
        // IPv6 too.
        wait_for(&format!("[::1]:{port}"), "\"localEndpoints\":0").await;

        // Another port, then none: nobody listens on the old ones.
        let other = free_port();
        set(other, 1);
        wait_for(&format!("127.0.0.1:{other}"), "200 OK").await;
        wait_for(&addr, "").await;
        sender.send_modify(HealthChecks::clear);
        wait_for(&format!("127.0.0.1:{other}"), "").await;
    }

    #[tokio::test]
    async fn an_agent_that_is_not_healthy_says_so_whatever_it_has() {
        let readiness = Arc::new(Readiness::default());
        readiness.stage("listing");
        let asked = Asked {
            service: ObjectName::new("shop", "web"),
            local_endpoints: Arc::new(AtomicUsize::new(3)),
            readiness,
        };
        let response = answer(State(asked)).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
