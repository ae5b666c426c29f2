//! Between etcd's messages and the store's words.

use bytes::Bytes;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, DeleteOptions, Event as EtcdEvent, EventType, GetOptions,
    KeyValue as EtcdKeyValue, PutOptions, ResponseHeader, Txn as EtcdTxn, TxnOp, TxnOpResponse,
};

use crate::{
    Event, EventKind, Key, KeyRange, KeyValue, Op, OpResult, Result, Revision, StoreError, Txn,
    TxnResponse,
};

/// No key is smaller: etcd has no empty key, and takes this for "from the first one".
pub(super) const FIRST_KEY: &str = "\0";

/// etcd counts in `i64`, and never below zero.
pub(super) fn revision(number: i64) -> Revision {
    Revision::try_from(number).unwrap_or(0)
}

/// A revision in etcd's type; one beyond it has not happened.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// The store's revision when the member answered.
pub(super) fn answered_at(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, |header| revision(header.revision()))
}

/// # Errors
/// [`StoreError::ForeignKey`] for a key that is no text.
pub(super) fn key_value(kv: &EtcdKeyValue) -> Result<KeyValue> {
    Ok(KeyValue {
        key: key(kv)?,
        value: Bytes::copy_from_slice(kv.value()),
        create_revision: revision(kv.create_revision()),
        mod_revision: revision(kv.mod_revision()),
        version: u64::try_from(kv.version()).unwrap_or(0),
    })
}

fn key(kv: &EtcdKeyValue) -> Result<Key> {
    match std::str::from_utf8(kv.key()) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err(StoreError::ForeignKey {
            key: kv.key().escape_ascii().to_string(),
        }),
    }
}

/// The first key and the options of a range.
pub(super) fn range(range: &KeyRange) -> (&str, GetOptions) {
    let start = if range.start.is_empty() {
        FIRST_KEY
    } else {
        &range.start
    };
    let options = match &range.end {
        Some(end) => GetOptions::new().with_range(end.as_bytes()),
        None => GetOptions::new().with_from_key(),
    };
    (start, options)
}

/// A transaction that answers with all that a [`TxnResponse`] tells.
pub(super) fn txn(txn: &Txn) -> EtcdTxn {
    let compares: Vec<EtcdCompare> = txn
        .compares
        .iter()
        .map(|compare| {
            let at = number(compare.mod_revision);
            EtcdCompare::mod_revision(compare.key.as_bytes(), CompareOp::Equal, at)
        })
        .collect();
    let mut then: Vec<TxnOp> = txn
        .then
        .iter()
        .map(|op| match op {
            Op::Put { key, value } => {
                let options = PutOptions::new().with_prev_key();
                TxnOp::put(key.as_bytes(), value.as_ref(), Some(options))
            }
            Op::Delete { key } => {
                let options = DeleteOptions::new().with_prev_key();
                TxnOp::delete(key.as_bytes(), Some(options))
            }
        })
        .collect();
    if then.is_empty() {
        // Without any operation a member would answer from what it knows, which may be old.
        then.push(TxnOp::get(
            FIRST_KEY,
            Some(GetOptions::new().with_count_only()),
        ));
    }
    let otherwise: Vec<TxnOp> = txn
        .else_get
        .iter()
        .map(|key| TxnOp::get(key.as_bytes(), None))
        .collect();
    EtcdTxn::new()
        .when(compares)
        .and_then(then)
        .or_else(otherwise)
}

/// What etcd answered to [`txn`].
pub(super) fn txn_response(txn: &Txn, answer: &etcd_client::TxnResponse) -> Result<TxnResponse> {
    let at = answered_at(answer.header());
    let responses = answer.op_responses();
    let mut response = TxnResponse {
        succeeded: answer.succeeded(),
        revision: at,
        results: Vec::new(),
        else_kvs: Vec::new(),
    };
    if response.succeeded {
        for (op, done) in txn.then.iter().zip(&responses) {
            response.results.push(op_result(op, done, at)?);
        }
    } else {
        for found in &responses {
            let kv = match found {
                TxnOpResponse::Get(get) => get.kvs().first().map(key_value).transpose()?,
                _ => None,
            };
            response.else_kvs.push(kv);
        }
    }
    Ok(response)
}

fn op_result(op: &Op, done: &TxnOpResponse, at: Revision) -> Result<OpResult> {
    let previous = match done {
        TxnOpResponse::Put(put) => put.prev_key(),
        TxnOpResponse::Delete(delete) => delete.prev_kvs().first(),
        _ => None,
    };
    let previous = previous.map(key_value).transpose()?;
    let current = match op {
        Op::Put { key, value } => Some(KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: previous.as_ref().map_or(at, |kv| kv.create_revision),
            mod_revision: at,
            version: previous.as_ref().map_or(0, |kv| kv.version) + 1,
        }),
        Op::Delete { .. } => None,
    };
    Ok(OpResult { previous, current })
}

/// A change with the key before it; `None` when etcd has already compacted what was before.
pub(super) fn event(event: &EtcdEvent) -> Result<Option<Event>> {
    let Some(kv) = event.kv() else {
        return Ok(None);
    };
    let prev_kv = event.prev_kv().map(key_value).transpose()?;
    let created = kv.create_revision() == kv.mod_revision();
    if prev_kv.is_none() && !created {
        return Ok(None);
    }
    let (kind, current) = match event.event_type() {
        EventType::Put => (EventKind::Put, Some(key_value(kv)?)),
        EventType::Delete => (EventKind::Delete, None),
    };
    Ok(Some(Event {
        kind,
        key: key(kv)?,
        revision: revision(kv.mod_revision()),
        kv: current,
        prev_kv,
    }))
}
