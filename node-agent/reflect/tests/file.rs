//! A file in the place of an API server: what is taken, what is not, and what then stays.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use node_agent_model::Change;
use node_agent_reflect::{Message, Objects, Reflected, Source, run_file, with_causes};
use proptest::prelude::*;
use tokio::sync::mpsc;

const GOOD: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: List
items:
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata:
    name: web-1
    labels: {kubernetes.io/service-name: web}
  addressType: IPv4
  ports: [{port: 8080}]
  endpoints: [{addresses: [10.244.1.2]}, {addresses: [10.244.1.3]}]
"#;

fn refused(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    with_causes(&Objects::parse(&GOOD.replacen(from, to, 1)).unwrap_err())
}

#[test]
fn what_is_wrong_is_named_by_document_object_and_field() {
    Objects::parse(GOOD).unwrap();
    Objects::parse("").unwrap();
    for (from, to, expected) in [
        (
            "port: 80,",
            "port: eighty,",
            "document 1: Service web: spec.ports[0].port: invalid type",
        ),
        (
            "port: 80,",
            "port: 99999,",
            "document 1: Service web: spec.ports[0].port: 99999 is no port",
        ),
        (
            "clusterIP: 10.96.0.10",
            "type: ClusterIP",
            "spec.clusterIP: is missing: nobody allocates one here",
        ),
        (
            "clusterIP: 10.96.0.10",
            "clusterIP: ten",
            "spec.clusterIP: \"ten\" is no address",
        ),
        (
            "metadata: {name: web}",
            "metadata: {}",
            "document 1: Service without a name: metadata.name: is missing",
        ),
        (
            "kind: Service",
            "kind: Pod",
            "\"Pod\" is not served: write v1 Service",
        ),
        (
            "ports: [{port: 80, ",
            "ports: [{port: 80, protocol: tcp, ",
            "spec.ports[0].protocol: \"tcp\" is unknown: write one of TCP",
        ),
        (
            "ports: [{port: 80, ",
            "ports: [{port: 81}, {port: 80, ",
            "spec.ports[0].name: is missing",
        ),
        (
            "{kubernetes.io/service-name: web}",
            "{}",
            "document 2: EndpointSlice web-1: metadata.labels[kubernetes.io/service-name]: is missing",
        ),
        (
            "[10.244.1.3]",
            "[\"fd00::3\"]",
            "endpoints[1].addresses[0]: \"fd00::3\" is no IPv4 address",
        ),
        ("[10.244.1.3]", "[]", "endpoints[1].addresses: is empty"),
        ("spec:", "spec: [", "document 1 is no YAML"),
    ] {
        let error = refused(from, to);
        assert!(error.contains(expected), "{to}: {error}");
    }
}

/// What the messages say, in short.
async fn next(messages: &mut mpsc::Receiver<Message>) -> String {
    let message = tokio::time::timeout(Duration::from_secs(10), messages.recv()).await;
    match message
        .expect("a message in time")
        .expect("the file is followed")
    {
        Message::Synced(source) => format!("synced {source:?}"),
        Message::Object {
            reflected: Reflected::Change(change),
            ..
        } => match change {
            Change::Service(name, service) => format!("{name} {}", service.is_some()),
            Change::EndpointSlice(name, slice) => {
                format!("{name} {}", slice.map_or(0, |slice| slice.endpoints.len()))
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

#[tokio::test]
async fn a_bad_file_keeps_what_was_and_a_good_one_removes_what_it_lacks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("services.yaml");
    replace(&path, GOOD);
    let (sender, mut messages) = mpsc::channel(100);
    let (told, mut tells) = mpsc::unbounded_channel();
    tokio::spawn(run_file(path.clone(), sender, move |error| {
        told.send(error.map(with_causes)).unwrap();
    }));
    for expected in [
        format!("synced {:?}", Source::Nodes),
        "default/web true".into(),
        format!("synced {:?}", Source::Services),
        "default/web-1 2".into(),
        format!("synced {:?}", Source::EndpointSlices),
    ] {
        assert_eq!(next(&mut messages).await, expected);
    }
    assert_eq!(tells.recv().await.unwrap(), None);

    replace(&path, &GOOD.replace("port: 80,", "port: 0,"));
    let error = tells.recv().await.unwrap().unwrap();
    assert!(
        error.contains("spec.ports[0].port: 0 is no port"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    let error = tells.recv().await.unwrap().unwrap();
    assert!(error.contains("read"), "{error}");
    assert!(messages.try_recv().is_err(), "a bad file says nothing");

    replace(&path, GOOD.split("---").next().unwrap());
    assert_eq!(tells.recv().await.unwrap(), None);
    let mut last = Vec::new();
    for _ in 0..4 {
        last.push(next(&mut messages).await);
    }
    assert_eq!(last[0], "default/web true");
    assert_eq!(last[2], "default/web-1 0", "what the file lacks is removed");
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,200}", at in 0..GOOD.len(), junk in "[ -~\n]{0,20}") {
        let _ = Objects::parse(&text);
        let _ = Objects::parse(&[&GOOD[..at], &junk, &GOOD[at..]].concat());
    }
}
