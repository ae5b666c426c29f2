//! A list as a body: the bytes of its objects one after the other, joined as they are sent.
//!
//! A list of 50,000 Pods has a hundred megabytes, of which no more than a piece is in memory.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use control_plane_registry::{List, Object};
use http_body::{Body, Frame, SizeHint};
use serde_json::Value;

/// A piece is sent when it has so many bytes.
const PIECE: usize = 64 * 1024;

/// The list's JSON.
#[derive(Debug)]
pub struct ListBody {
    items: std::vec::IntoIter<Arc<Object>>,
    /// What goes out before the next object: the head, then a comma.
    before: Vec<u8>,
    /// How many bytes are still to come.
    left: usize,
}

const END: &[u8] = b"]}";

impl ListBody {
    pub fn new(list: List, metadata: &Value) -> Self {
        let head = format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            list.kind.kind,
            list.kind.api_version()
        );
        let commas = list.items.len().saturating_sub(1);
        let objects: usize = list.items.iter().map(|object| object.size()).sum();
        Self {
            left: head.len() + objects + commas + END.len(),
            items: list.items.into_iter(),
            before: head.into(),
        }
    }

    fn piece(&mut self) -> Bytes {
        let mut piece = Vec::with_capacity(self.left.min(PIECE + PIECE / 8));
        while piece.len() < PIECE {
            match self.items.next() {
                Some(object) => {
                    piece.append(&mut self.before);
                    object.write_to(&mut piece);
                    self.before.push(b',');
                }
                None => {
                    // A comma after the last object is none; the head of an empty list still is to come.
                    if self.before != b"," {
                        piece.append(&mut self.before);
                    }
                    piece.extend_from_slice(END);
                    break;
                }
            }
        }
        self.left -= piece.len();
        piece.into()
    }
}

impl Body for ListBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let more = self.left > 0;
        Poll::Ready(more.then(|| Ok(Frame::data(self.piece()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use control_plane_registry::kinds;
    use http_body_util::BodyExt;
    use serde_json::json;

    use super::*;

    async fn read(count: usize, size: usize) -> (u64, Vec<u8>) {
        let kind = kinds::find("", "v1", "configmaps").unwrap();
        let object = |at: usize| {
            let value =
                json!({"metadata": {"name": at.to_string()}, "data": {"x": "x".repeat(size)}});
            Arc::new(Object::new(kind, value, at as u64))
        };
        let list = List {
            kind,
            items: (0..count).map(object).collect(),
            revision: 7,
            continue_token: None,
            remaining: None,
        };
        let body = ListBody::new(list, &json!({"resourceVersion": "7"}));
        let said = body.size_hint().exact().unwrap();
        (said, body.collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn it_is_as_long_as_it_says_and_has_every_object_once() {
        for (count, size) in [
            (0, 0),
            (1, 0),
            (2, 100),
            (1, 2 * PIECE),
            (300, 1_000),
            (3, PIECE),
        ] {
            let (said, bytes) = read(count, size).await;
            assert_eq!(said, bytes.len() as u64, "{count} of {size}");
            let list: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(list["kind"], "ConfigMapList");
            let names: Vec<&str> = list["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["metadata"]["name"].as_str().unwrap())
                .collect();
            let want: Vec<String> = (0..count).map(|at| at.to_string()).collect();
            assert_eq!(names, want);
        }
    }
}
