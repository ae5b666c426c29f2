//! Which backend a client gets by session affinity and by the other algorithms; strict round robin is in `services`.

use ebpf_abi::{Service, backend_state, service_flag};
use ebpf_packet::{Caller, Connect, connect};

use crate::support::{Frame, Has, Scene, Tcp, TestFamily, TestNode, in_both_families};

in_both_families! {
    a_client_goes_where_it_went_until_its_time_is_up
    each_connection_renews_a_clients_time
    clients_do_not_share_their_affinity
    a_client_leaves_a_backend_that_takes_nothing_more
    a_client_leaves_a_backend_that_belongs_to_another_service_now
    a_client_leaves_a_backend_whose_id_was_given_again
    a_pods_sockets_stay_with_their_backend
    weighted_slots_give_a_canary_one_connection_in_twenty
    a_random_service_takes_no_turns
    a_hash_gives_a_client_the_same_backend_by_every_address
    a_hash_spreads_clients_evenly
}

const SECONDS: u32 = 60;

/// Five backends, told apart by their ports, 1 to 5.
fn scene<A: TestFamily>() -> Scene<A>
where
    TestNode: Has<A>,
{
    Scene::with_backends(&[1, 2, 3, 4, 5].map(|port| (A::pod(1, 3), port)))
}

fn service<A: TestFamily>(scene: &mut Scene<A>) -> &mut Service
where
    TestNode: Has<A>,
{
    scene.node.services.get_mut(&1).expect("the scene has it")
}

fn sticky<A: TestFamily>() -> Scene<A>
where
    TestNode: Has<A>,
{
    let mut scene = scene();
    let service = service(&mut scene);
    service.affinity_seconds = SECONDS;
    service.member_base = service.slot_base;
    service.member_count = service.slot_count;
    scene
}

fn wait<A: TestFamily>(scene: &Scene<A>, seconds: u64)
where
    TestNode: Has<A>,
{
    let now = &scene.node.now_ns;
    now.set(now.get() + seconds * 1_000_000_000);
}

/// Opens a connection from a pod's port to an address; the backend's port.
#[track_caller]
fn open_at<A: TestFamily>(scene: &Scene<A>, pod: u8, port: u16, vip: (A, u16)) -> u16
where
    TestNode: Has<A>,
{
    let mut wire = Frame::tcp((A::pod(1, pod), port), vip, Tcp::SYN).wire();
    scene.pod_sends(&mut wire);
    let at = 14 + A::HEADER_LEN + 2;
    u16::from_be_bytes([wire.bytes[at], wire.bytes[at + 1]])
}

#[track_caller]
fn open<A: TestFamily>(scene: &Scene<A>, pod: u8, port: u16) -> u16
where
    TestNode: Has<A>,
{
    open_at(scene, pod, port, (A::service(1), 80))
}

fn a_client_goes_where_it_went_until_its_time_is_up<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = sticky::<A>();
    assert_eq!([1, 2, 3].map(|port| open(&scene, 2, port)), [1, 1, 1]);
    wait(&scene, u64::from(SECONDS) - 1);
    assert_eq!(open(&scene, 2, 4), 1);
    wait(&scene, u64::from(SECONDS));
    assert_eq!(open(&scene, 2, 5), 2);
}

fn each_connection_renews_a_clients_time<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = sticky::<A>();
    for port in 1..9 {
        assert_eq!(open(&scene, 2, port), 1);
        wait(&scene, u64::from(SECONDS) - 10);
    }
}

fn clients_do_not_share_their_affinity<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = sticky::<A>();
    assert_eq!(open(&scene, 2, 1), 1);
    assert_eq!(open(&scene, 3, 1), 2);
    assert_eq!((open(&scene, 2, 2), open(&scene, 3, 2)), (1, 2));
}

fn a_client_leaves_a_backend_that_takes_nothing_more<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = sticky::<A>();
    assert_eq!(open(&scene, 2, 1), 1);
    let backends = &mut scene.node.tables_mut().backends;
    let backend = backends.get_mut(&1).expect("the first backend");
    backend.state = backend_state::TERMINATING;
    assert_eq!(open(&scene, 2, 2), 2);
    assert_eq!(open(&scene, 2, 3), 2);
}

fn a_client_leaves_a_backend_that_belongs_to_another_service_now<A: TestFamily>()
where
    TestNode: Has<A>,
{
    // Each backend in turn goes, whatever its place among the members; another service keeps it active.
    for gone in 1..=5 {
        let mut scene = sticky::<A>();
        let before: Vec<u16> = (0..5).map(|pod| open(&scene, 10 + pod, 1)).collect();
        assert_eq!(before, [1, 2, 3, 4, 5]);
        let base = service(&mut scene).slot_base;
        let left: Vec<u32> = (1..=5).filter(|id| *id != gone).collect();
        for (slot, id) in (base..).zip(left) {
            scene.node.slots.insert(slot, id);
        }
        let service = service(&mut scene);
        (service.slot_count, service.member_count) = (4, 4);
        for (pod, port) in (0..).zip(before) {
            let now = open(&scene, 10 + pod, 2);
            let stayed = now == port;
            assert_eq!(stayed, u32::from(port) != gone, "{port} became {now}");
        }
    }
}

fn a_client_leaves_a_backend_whose_id_was_given_again<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = sticky::<A>();
    assert_eq!(open(&scene, 2, 1), 1);
    let backends = &mut scene.node.tables_mut().backends;
    backends.get_mut(&1).expect("the first backend").epoch += 1;
    assert_eq!(open(&scene, 2, 2), 2);
}

struct Pod(u64);

impl Caller for Pod {
    fn netns_cookie(&self) -> u64 {
        self.0
    }
}

fn a_pods_sockets_stay_with_their_backend<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = sticky::<A>();
    let backend = |pod| match connect(&scene.node, &Pod(pod), A::service(1), 80_u16.to_be()) {
        Connect::Backend(origin) => u16::from_be(origin.backend_port_be),
        other => panic!("{other:?}"),
    };
    assert_eq!([7, 8, 7, 8, 7].map(backend), [1, 2, 1, 2, 1]);
}

fn weighted_slots_give_a_canary_one_connection_in_twenty<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = scene::<A>();
    let service = service(&mut scene);
    let base = service.slot_base;
    service.slot_count = 20;
    for slot in base..base + 20 {
        let backend = if slot == base + 7 { 5 } else { 1 };
        scene.node.slots.insert(slot, backend);
    }
    let canaries = (0..200).filter(|port| open(&scene, 2, 1000 + port) == 5);
    assert_eq!(canaries.count(), 10);
}

fn a_random_service_takes_no_turns<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = scene::<A>();
    service(&mut scene).flags = service_flag::RANDOM;
    let backends: Vec<u16> = (0..500).map(|port| open(&scene, 2, 1000 + port)).collect();
    assert_eq!(scene.node.cursors.borrow().get(&1), None);
    for backend in 1..=5 {
        let share = backends.iter().filter(|port| **port == backend).count();
        assert!(
            (60..140).contains(&share),
            "backend {backend}: {share} of 500"
        );
    }
}

fn a_hash_gives_a_client_the_same_backend_by_every_address<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = scene::<A>();
    service(&mut scene).flags = service_flag::MAGLEV;
    scene.frontend(A::outside(1), 80, 1, 0);
    for port in 1000..1050 {
        let one = open(&scene, 2, port);
        assert_eq!(open_at(&scene, 2, port, (A::outside(1), 80)), one);
    }
}

fn a_hash_spreads_clients_evenly<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = scene::<A>();
    service(&mut scene).flags = service_flag::MAGLEV;
    let mut shares = [0; 6];
    for pod in 10..60 {
        for port in 0..20 {
            shares[usize::from(open(&scene, pod, 40000 + port))] += 1;
        }
    }
    for share in &shares[1..] {
        assert!((150..250).contains(share), "{shares:?}");
    }
}
