//! A file of Services and EndpointSlices in the place of an API server, for machines that have none.
//!
//! Each good version of the file counts as a complete list; a bad one changes nothing. The file is looked at twice a
//! second and taken once it has stayed the same from one look to the next: by its inode, size and time, so a file that
//! is renamed into place is seen whatever file system it lies on, and one that is written slowly is not read half.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_yaml_ng::{Deserializer, Value};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::stream::Names;
use crate::{Kind, Message, Source, file_rules};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("document {document} is no YAML")]
    Yaml {
        document: usize,
        #[source]
        source: serde_yaml_ng::Error,
    },
    #[error("document {document}: {object}: {message}")]
    Object {
        /// From 1 on.
        document: usize,
        /// Kind and name as far as they are known.
        object: String,
        /// Begins with the path of the field.
        message: String,
    },
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Objects {
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
}

/// What says that a file was written again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Version {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// What every object says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    items: Vec<Value>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
}

impl Objects {
    /// Reads `v1` Services, `discovery.k8s.io/v1` EndpointSlices and Lists of them from documents of YAML (or JSON).
    /// An object without a namespace is in `default`.
    ///
    /// # Errors
    ///
    /// [`FileError`] for the first thing that is wrong: names document, object and field.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let mut objects = Self::default();
        for (index, document) in Deserializer::from_str(text).enumerate() {
            let document_number = index + 1;
            let value = Value::deserialize(document).map_err(|source| FileError::Yaml {
                document: document_number,
                source,
            })?;
            if !value.is_null() {
                objects.add(document_number, value)?;
            }
        }
        Ok(objects)
    }

    fn add(&mut self, document: usize, value: Value) -> Result<(), FileError> {
        let header: Header = decode(document, "object", value.clone())?;
        let name = header.metadata.name.as_deref().unwrap_or("without a name");
        let object = format!("{} {name}", header.kind);
        let wrong = |message: String| FileError::Object {
            document,
            object: object.clone(),
            message,
        };
        match (header.api_version.as_str(), header.kind.as_str()) {
            ("v1", "List") => header
                .items
                .into_iter()
                .try_for_each(|item| self.add(document, item)),
            ("v1", "Service") => {
                let mut service: Service = decode(document, &object, value)?;
                file_rules::service(&service).map_err(wrong)?;
                in_a_namespace(&mut service.metadata.namespace);
                self.services.push(service);
                Ok(())
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                let mut slice: EndpointSlice = decode(document, &object, value)?;
                file_rules::endpoint_slice(&slice).map_err(wrong)?;
                in_a_namespace(&mut slice.metadata.namespace);
                self.slices.push(slice);
                Ok(())
            }
            (version, kind) => Err(wrong(format!(
                "kind: {version:?} {kind:?} is not served: write v1 Service or discovery.k8s.io/v1 EndpointSlice"
            ))),
        }
    }
}

fn in_a_namespace(namespace: &mut Option<String>) {
    namespace.get_or_insert_with(|| "default".to_owned());
}

fn decode<T: DeserializeOwned>(
    document: usize,
    object: &str,
    value: Value,
) -> Result<T, FileError> {
    serde_path_to_error::deserialize(value).map_err(|error| FileError::Object {
        document,
        object: object.to_owned(),
        message: error.to_string(),
    })
}

/// Follows a file until the receiver is gone. `tell` hears why the last version was not taken, or that it was.
pub async fn run_file(
    path: PathBuf,
    out: mpsc::Sender<Message>,
    tell: impl Fn(Option<&FileError>) + Send,
) {
    // The file knows no other nodes.
    if out.send(Message::Synced(Source::Nodes)).await.is_err() {
        return;
    }
    let (mut services, mut slices) = (Names::default(), Names::default());
    let mut seen = None;
    let mut taken = None;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        if out.is_closed() {
            return;
        }
        let now = version(&path);
        let steady = now == seen;
        seen = now;
        if !steady || taken == Some(now) {
            continue;
        }
        taken = Some(now);
        let objects = match read(&path) {
            Ok(objects) => objects,
            Err(error) => {
                warn!(path = %path.display(), error = with_causes(&error), "the file is not taken: what was before stays");
                tell(Some(&error));
                continue;
            }
        };
        info!(path = %path.display(), services = objects.services.len(), endpoint_slices = objects.slices.len(),
            "the file is taken");
        tell(None);
        let messages = list(&mut services, Source::Services, objects.services)
            .into_iter()
            .chain(list(&mut slices, Source::EndpointSlices, objects.slices));
        for message in messages {
            if out.send(message).await.is_err() {
                return;
            }
        }
    }
}

/// An error with what caused it, in one line.
pub fn with_causes(error: &FileError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}

fn read(path: &Path) -> Result<Objects, FileError> {
    let text = fs::read_to_string(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })?;
    Objects::parse(&text)
}

/// `None` while there is no file.
fn version(path: &Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok()?;
    Some(Version {
        inode: metadata.ino(),
        size: metadata.size(),
        seconds: metadata.mtime(),
        nanoseconds: metadata.mtime_nsec(),
    })
}

/// The messages of a complete list, removals of what it lacks included.
fn list<K: Kind>(names: &mut Names, source: Source, objects: Vec<K>) -> Vec<Message> {
    let events = std::iter::once(Event::Init)
        .chain(objects.into_iter().map(Event::InitApply))
        .chain([Event::InitDone]);
    events
        .flat_map(|event| names.messages(source, event))
        .collect()
}
