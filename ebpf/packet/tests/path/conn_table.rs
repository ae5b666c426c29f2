//! The connection table itself: what it finds, what gives way when it is full, and what many processors leave.

use std::{sync::Barrier, thread};

use ebpf_abi::{BUCKET_WORDS, ConnKey, conn_flag, conn_word};
use ebpf_packet::{
    ConnState, Inserted,
    conn_table::{self, ConnMemory},
};

use crate::support::{Memory, TestFamily, in_both_families};

in_both_families! {
    a_connection_is_found_by_both_of_its_tuples_and_gone_by_either
    a_tuple_that_is_taken_leaves_nothing_of_the_newcomer
    a_full_table_holds_exactly_as_many_connections_as_it_says
    half_open_connections_give_way_and_established_ones_do_not
    one_way_udp_gives_way_and_answered_udp_does_not
    a_closed_connection_gives_way_only_after_its_last_packets
    a_bucket_that_is_full_refuses_and_loses_nothing
    an_idle_connection_ends_unless_a_packet_finds_it_first
    processors_that_track_the_same_connection_leave_one
    processors_that_fill_and_empty_the_table_leave_it_empty
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SECOND: u64 = 1_000_000_000;
const ESTABLISHED: u32 = conn_flag::OPEN | conn_flag::ANSWERED | conn_flag::CONFIRMED;

/// The tuple of client number `n` towards a service, and what it becomes.
fn pair<A: TestFamily>(n: u32, protocol: u8) -> [ConnKey<A>; 2] {
    let [.., host, high, low] = n.to_be_bytes();
    let key = |dst, port: u16| ConnKey {
        src: A::pod(1, host),
        dst,
        src_port_be: u16::from_ne_bytes([high, low]),
        dst_port_be: port.to_be(),
        protocol,
        pad: [0; 3],
    };
    [key(A::service(1), 80), key(A::pod(2, 9), 8080)]
}

fn state(protocol: u8, flags: u32, last_seen_s: u64) -> ConnState {
    ConnState {
        last_seen_ns: last_seen_s * SECOND,
        flags,
        protocol: protocol.into(),
        ..ConnState::default()
    }
}

fn insert<A: TestFamily>(memory: &Memory<A>, n: u32, state: &ConnState) -> Inserted {
    let [key, target] = pair(n, state.protocol as u8);
    conn_table::insert(memory, &key, &target.reversed(), state)
}

fn is_there<A: TestFamily>(memory: &Memory<A>, n: u32, protocol: u8) -> bool {
    let [key, target] = pair(n, protocol);
    let found = [key, target.reversed()].map(|key| conn_table::find(memory, &key));
    let [there, back] = found.map(|word| word != conn_word::NONE);
    assert_eq!(there, back, "half of connection {n}");
    there
}

/// Two words of the index and one slot for each connection.
#[track_caller]
fn assert_whole<A: TestFamily>(memory: &Memory<A>, conns: usize) {
    assert_eq!(memory.count(), conns);
    assert_eq!(memory.index_words(), 2 * conns);
    assert_eq!(memory.fill_sum(), 2 * conns);
    assert_eq!(memory.used_slots() as usize, conns);
}

fn a_connection_is_found_by_both_of_its_tuples_and_gone_by_either<A: TestFamily>() {
    let memory = Memory::<A>::new(64);
    for by_reply in [false, true] {
        assert_eq!(insert(&memory, 7, &state(TCP, 0, 1)), Inserted::Done);
        let [key, target] = pair(7, TCP);
        let [there, back] = [key, target.reversed()].map(|key| conn_table::find(&memory, &key));
        assert!(!conn_word::is_reply(there) && conn_word::is_reply(back));
        assert_eq!(conn_word::slot(there), conn_word::slot(back));
        let conn = memory.conn(conn_word::slot(there));
        assert_eq!((conn.original, conn.reply), (key, target.reversed()));
        assert_eq!(conn_table::find(&memory, &target), conn_word::NONE);

        conn_table::remove(&memory, &if by_reply { target.reversed() } else { key });
        assert!(!is_there(&memory, 7, TCP));
        assert_whole(&memory, 0);
    }
}

fn an_idle_connection_ends_unless_a_packet_finds_it_first<A: TestFamily>() {
    let memory = Memory::<A>::new(64);
    let [key, target] = pair(7, TCP);
    for (found_by, stays) in [
        (None, false),
        (Some(key), true),
        (Some(target.reversed()), true),
    ] {
        assert_eq!(insert(&memory, 7, &state(TCP, 0, 1)), Inserted::Done);
        let slot = conn_word::slot(conn_table::find(&memory, &key));
        let generation = memory.generation(slot);
        assert!(conn_table::mark_idle(&memory, slot, generation));
        let idle = memory.generation(slot);
        assert!(!conn_table::mark_idle(&memory, slot, idle), "marked twice");
        assert_whole(&memory, 1);
        if let Some(found_by) = found_by {
            assert_ne!(conn_table::find(&memory, &found_by), conn_word::NONE);
            assert_eq!(memory.generation(slot), generation);
        }
        assert_eq!(conn_table::release(&memory, slot, idle), !stays);
        assert_eq!(is_there(&memory, 7, TCP), stays);
        conn_table::remove(&memory, &key);
        assert_whole(&memory, 0);
    }
}

fn a_tuple_that_is_taken_leaves_nothing_of_the_newcomer<A: TestFamily>() {
    let memory = Memory::<A>::new(64);
    let state = state(TCP, 0, 1);
    let [key, target] = pair::<A>(7, TCP);
    let [other_key, other_target] = pair::<A>(8, TCP);
    assert_eq!(insert(&memory, 7, &state), Inserted::Done);
    let twice = conn_table::insert(&memory, &other_key, &target.reversed(), &state);
    assert_eq!(twice, Inserted::ReplyTaken);
    let twice = conn_table::insert(&memory, &key, &other_target.reversed(), &state);
    assert_eq!(twice, Inserted::Tracked);
    assert_whole(&memory, 1);
    assert!(is_there(&memory, 7, TCP));
}

fn a_full_table_holds_exactly_as_many_connections_as_it_says<A: TestFamily>() {
    let memory = Memory::<A>::new(1024);
    let established = state(TCP, ESTABLISHED, 1);
    let inserted = (0..1024).map(|n| insert(&memory, n, &established));
    assert_eq!(
        inserted.filter(|done| *done == Inserted::Done).count(),
        1024
    );
    assert_eq!(insert(&memory, 5000, &established), Inserted::Full);
    assert_whole(&memory, 1024);
    assert!((0..1024).all(|n| is_there(&memory, n, TCP)));
}

/// Fills a table with connections of two kinds and lets ten times as many new ones come that nobody answers.
fn flood<A: TestFamily>(stays: &ConnState, goes: &ConnState, now_s: u64) {
    let memory = Memory::<A>::new(1024);
    for n in 0..512 {
        assert_eq!(insert(&memory, n, stays), Inserted::Done);
        assert_eq!(insert(&memory, 10_000 + n, goes), Inserted::Done);
    }
    let new = state(stays.protocol as u8, conn_flag::OPEN, now_s);
    let done = (20_000..30_000).filter(|n| insert(&memory, *n, &new) == Inserted::Done);
    assert_eq!(done.count(), 10_000, "a new one finds room each time");
    assert_whole(&memory, 1024);
    let there = |range: std::ops::Range<u32>| {
        range
            .filter(|n| is_there(&memory, *n, stays.protocol as u8))
            .count()
    };
    assert_eq!(there(0..512), 512, "all that are established stay");
    assert_eq!(there(10_000..10_512), 0, "the others went");
    // Those that came last are there: each had the time that a whole round takes to be answered.
    assert_eq!(there(29_488..30_000), 512);
}

fn half_open_connections_give_way_and_established_ones_do_not<A: TestFamily>() {
    let established = state(TCP, ESTABLISHED, 1);
    flood::<A>(&established, &state(TCP, conn_flag::OPEN, 100), 100);
    // The backend's answer alone establishes nothing: it goes to whoever was forged as the sender.
    let answered = state(TCP, conn_flag::OPEN | conn_flag::ANSWERED, 100);
    flood::<A>(&established, &answered, 100);
}

fn one_way_udp_gives_way_and_answered_udp_does_not<A: TestFamily>() {
    let answered = state(UDP, conn_flag::OPEN | conn_flag::ANSWERED, 1);
    flood::<A>(&answered, &state(UDP, conn_flag::OPEN, 100), 100);
}

fn a_closed_connection_gives_way_only_after_its_last_packets<A: TestFamily>() {
    let closed = state(TCP, ESTABLISHED | conn_flag::CLIENT_FIN, 100);
    flood::<A>(&state(TCP, ESTABLISHED, 1), &closed, 106);
    let memory = Memory::<A>::limited(1);
    assert_eq!(insert(&memory, 1, &closed), Inserted::Done);
    let new = state(TCP, conn_flag::OPEN, 104);
    assert_eq!(insert(&memory, 2, &new), Inserted::Full);
    assert!(is_there(&memory, 1, TCP));
}

fn a_bucket_that_is_full_refuses_and_loses_nothing<A: TestFamily>() {
    let memory = Memory::<A>::new(1024);
    let table = *memory.table().expect("a table");
    let bucket = |key: &ConnKey<A>| conn_word::bucket(key.hash(table.seed), table.buckets);
    let first = bucket(&pair(0, TCP)[0]);
    let meet = (0..60_000).filter(|n| bucket(&pair(*n, TCP)[0]) == first);
    let meet: Vec<u32> = meet.take(BUCKET_WORDS as usize + 1).collect();
    let established = state(TCP, ESTABLISHED, 1);
    for n in &meet {
        insert(&memory, *n, &established);
    }
    let there = meet.iter().filter(|n| is_there(&memory, **n, TCP)).count();
    assert!((1..=BUCKET_WORDS as usize).contains(&there), "{there}");
    assert_whole(&memory, there);
}

fn processors_that_track_the_same_connection_leave_one<A: TestFamily>() {
    const ROUNDS: u32 = 2000;
    let memory = Memory::<A>::new(4096);
    let start = Barrier::new(4);
    let state = state(UDP, conn_flag::OPEN, 1);
    let done: usize = thread::scope(|scope| {
        let track = || {
            let round = |n| {
                start.wait();
                insert(&memory, n, &state)
            };
            (0..ROUNDS)
                .map(round)
                .filter(|result| *result == Inserted::Done)
                .count()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(track)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a processor"))
            .sum()
    });
    assert_eq!(done, ROUNDS as usize);
    assert!((0..ROUNDS).all(|n| is_there(&memory, n, UDP)));
    assert_whole(&memory, ROUNDS as usize);
}

fn processors_that_fill_and_empty_the_table_leave_it_empty<A: TestFamily>() {
    // Twice as many as fit, so that they push each other out as well.
    let memory = Memory::<A>::new(64);
    let state = state(UDP, conn_flag::OPEN, 1);
    thread::scope(|scope| {
        for processor in 0..4 {
            let (memory, state) = (&memory, &state);
            scope.spawn(move || {
                for n in (0..20_000).map(|n: u32| n.wrapping_mul(7 + processor) % 128) {
                    insert(memory, n, state);
                    conn_table::remove(memory, &pair((n + 64) % 128, UDP)[(n % 2) as usize]);
                }
            });
        }
    });
    assert_eq!(memory.index_words(), 2 * memory.count());
    for n in 0..128 {
        conn_table::remove(&memory, &pair(n, UDP)[0]);
    }
    assert_whole(&memory, 0);
}
