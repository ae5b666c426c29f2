//! How many durable writes a second the embedded store takes: `cargo run --example rate -- FILE [WRITERS] [WRITES]`.
#![allow(clippy::unwrap_used, reason = "a measurement that fails has no answer")]

use std::sync::Arc;
use std::time::Instant;

use control_plane_store::embedded::{EmbeddedStore, Options};
use control_plane_store::{Op, Store, Txn};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap();
    let mut number = |default: u64| {
        arguments
            .next()
            .map_or(default, |text| text.parse().unwrap())
    };
    let (writers, writes) = (number(16), number(2_000));
    let store = Arc::new(EmbeddedStore::open(path, Options::default()).unwrap());
    let begun = Instant::now();
    let tasks = (0..writers).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut slowest = std::time::Duration::ZERO;
            for write in 0..writes / writers {
                let begun = Instant::now();
                let put = Op::put(format!("/{writer}/{write}"), vec![b'x'; 1_000]);
                store.txn(Txn::new().then(put)).await.unwrap();
                slowest = slowest.max(begun.elapsed());
            }
            slowest
        })
    });
    let slowest = futures::future::join_all(tasks).await;
    let slowest = slowest.into_iter().map(|task| task.unwrap()).max();
    let rate = writes as f64 / begun.elapsed().as_secs_f64();
    println!("{writers} writers, {writes} writes of 1 kB: {rate:.0} a second, slowest {slowest:?}");
}
