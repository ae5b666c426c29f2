//! Seats and queues without a server: who is let in, who waits, and in which order.

use super::*;

fn limits(nominal: u32, lendable: u32, queuing: Option<(usize, usize, usize)>) -> Limits {
    Limits {
        nominal,
        lendable,
        most: 1000,
        queuing: queuing.map(|(queues, hand, length)| Queuing {
            queues,
            hand,
            length,
        }),
    }
}

fn levels(wanted: &[(&str, Limits)]) -> Levels<u32> {
    let mut levels = Levels::default();
    let wanted = wanted.iter().map(|(name, l)| (Arc::from(*name), l.clone()));
    levels.configure(&wanted.collect());
    levels
}

fn seated(entry: Entry<u32>) -> Place {
    match entry {
        Entry::Seated(place, _) => place,
        other => panic!("expected a seat, got {other:?}"),
    }
}

fn queued(entry: Entry<u32>) -> Ticket {
    match entry {
        Entry::Queued(ticket) => ticket,
        other => panic!("expected a place in a queue, got {other:?}"),
    }
}

fn refused(entry: Entry<u32>) -> &'static str {
    match entry {
        Entry::Refused(why) => why,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn who_finds_no_seat_waits_and_who_finds_no_queue_is_refused() {
    let low: Arc<str> = "low".into();
    let mut levels = levels(&[("low", limits(2, 0, Some((1, 1, 2))))]);
    let first = seated(levels.enter(&low, 0, 1, 1));
    seated(levels.enter(&low, 0, 1, 2));
    queued(levels.enter(&low, 0, 1, 3));
    let ticket = queued(levels.enter(&low, 0, 1, 4));
    assert_eq!(refused(levels.enter(&low, 0, 1, 5)), "queue-full");
    levels.give_up(&ticket);
    queued(levels.enter(&low, 0, 1, 6));
    levels.leave(&first, 0.1);
    let started: Vec<u32> = levels.start().into_iter().map(|(_, who)| who).collect();
    assert_eq!(started, [3], "one seat, one request");
    assert_eq!(levels.executing("low"), 2);
}

#[test]
fn a_level_without_queues_refuses() {
    let name: Arc<str> = "catch-all".into();
    let mut levels = levels(&[("catch-all", limits(1, 0, None))]);
    seated(levels.enter(&name, 0, 1, 1));
    assert_eq!(refused(levels.enter(&name, 1, 1, 2)), "concurrency-limit");
}

#[test]
fn a_flow_that_sends_much_does_not_delay_one_that_sends_little() {
    let low: Arc<str> = "low".into();
    // Flows are hashes, whose every bit counts.
    let (large, small) = (0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03);
    let mut levels = levels(&[("low", limits(1, 0, Some((64, 6, 100))))]);
    let mut running = seated(levels.enter(&low, large, 1, 0));
    for at in 1..=100 {
        queued(levels.enter(&low, large, 1, at));
    }
    queued(levels.enter(&low, small, 1, 1000));
    let mut order = Vec::new();
    for _ in 0..101 {
        levels.leave(&running, 0.01);
        let mut started = levels.start();
        assert_eq!(started.len(), 1);
        let (place, who) = started.remove(0);
        running = place;
        order.push(who);
    }
    let turn = order.iter().position(|who| *who == 1000).unwrap();
    // The large flow has a hand of six queues, each of which may come once before.
    assert!(turn <= 6, "the small flow's turn was {turn}");
}

#[test]
fn wide_requests_pay_for_their_seats() {
    let low: Arc<str> = "low".into();
    let mut levels = levels(&[("low", limits(10, 0, Some((2, 1, 100))))]);
    // Flow 0 is dealt the first queue, flow 1 the second.
    let mut running = vec![seated(levels.enter(&low, 0, 10, 0))];
    for _ in 0..40 {
        queued(levels.enter(&low, 0, 10, 10));
        queued(levels.enter(&low, 1, 1, 1));
    }
    let mut seconds = [0.0, 0.0];
    for _ in 0..12 {
        for place in running.drain(..) {
            seconds[place.queue] += f64::from(place.width) * 0.1;
            levels.leave(&place, 0.1);
        }
        running = levels.start().into_iter().map(|(place, _)| place).collect();
    }
    assert!(
        seconds[1] > 0.0 && seconds[0] / seconds[1] < 4.0,
        "seat-seconds of wide and of narrow requests: {seconds:?}"
    );
}

#[test]
fn what_is_lent_comes_back() {
    let (high, low): (Arc<str>, Arc<str>) = ("high".into(), "low".into());
    let mut levels = levels(&[
        ("high", limits(4, 3, Some((1, 1, 10)))),
        ("low", limits(2, 0, Some((1, 1, 50)))),
    ]);
    let mut low_places = Vec::new();
    for at in 0..5 {
        low_places.push(seated(levels.enter(&low, 0, 1, at)));
    }
    queued(levels.enter(&low, 0, 1, 5));
    // The one that cannot be lent is there at once, and so are the others, though they are on loan.
    for at in 0..4 {
        seated(levels.enter(&high, 0, 1, 10 + at));
    }
    levels.leave(&low_places.remove(0), 0.1);
    assert!(levels.start().is_empty(), "the loan is over");
    for place in low_places {
        levels.leave(&place, 0.1);
    }
    assert_eq!(levels.start().len(), 1);
}

#[test]
fn a_request_that_is_wider_than_its_level_still_runs() {
    let low: Arc<str> = "low".into();
    let mut levels = levels(&[("low", limits(2, 0, Some((1, 1, 1))))]);
    let place = seated(levels.enter(&low, 0, 10, 1));
    assert_eq!(levels.executing("low"), 2);
    levels.leave(&place, 0.1);
    assert_eq!(levels.executing("low"), 0);
}

#[test]
fn other_limits_keep_those_who_wait() {
    let low: Arc<str> = "low".into();
    let mut levels = levels(&[("low", limits(1, 0, Some((8, 2, 10))))]);
    let place = seated(levels.enter(&low, 0, 1, 0));
    for flow in 0..5 {
        queued(levels.enter(&low, flow, 1, 1));
    }
    levels.configure(&BTreeMap::from([(
        low.clone(),
        limits(3, 0, Some((2, 1, 10))),
    )]));
    assert_eq!(levels.start().len(), 2);
    // Gone from the configuration, but not before its last request.
    levels.configure(&BTreeMap::new());
    levels.leave(&place, 0.1);
    assert_eq!(levels.start().len(), 1);
}

#[test]
fn a_hand_has_no_card_twice() {
    for flow in (0..10_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
        let hand = deal(flow, 64, 6);
        assert!(hand.windows(2).all(|w| w[0] < w[1]) && hand[5] < 64);
        assert_eq!(hand, deal(flow, 64, 6));
    }
    assert_eq!(deal(5, 3, 10).len(), 3);
}
