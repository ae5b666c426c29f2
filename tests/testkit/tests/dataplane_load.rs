//! Loading, pinning and attaching on the real kernel: what a restart keeps, what it refuses.

use std::{collections::BTreeMap, process::Command};

use ebpf_abi::{Addr4, ConnKey, SocketOrigin, maps as names};
use node_agent_maps::{Attached, Dataplane, Error, Link, LinkTarget, Maps, Options, Program};
use tests_testkit::{Bpffs, Cgroup, NetNs, is_root, skip};

fn small() -> Options {
    let sizes = [
        (names::SLOT, 1024),
        (names::CONN4, 1024),
        (names::CONN6, 1024),
    ];
    Options {
        max_entries: BTreeMap::from(sizes),
        log: false,
    }
}

/// A namespace with the interface `veth0`.
fn namespace_with_interface() -> (NetNs, u32) {
    let netns = NetNs::new().expect("a namespace");
    netns
        .ip("link add veth0 type veth peer name veth1\nlink set veth0 up")
        .expect("a veth pair");
    let ifindex = netns.ifindex("veth0").expect("the interface that was made");
    (netns, ifindex)
}

fn program_ids(bpffs: &Bpffs) -> Vec<(String, String)> {
    let dir = bpffs.pin_dir().join("programs");
    let mut ids: Vec<_> = std::fs::read_dir(dir)
        .expect("programs are pinned")
        .map(|entry| entry.expect("an entry").path())
        // Directories tell from which object the programs come.
        .filter(|path| !path.is_dir())
        .map(|path| {
            let output = Command::new("bpftool")
                .args(["-j", "prog", "show", "pinned"])
                .arg(&path)
                .output()
                .expect("bpftool runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let id = text
                .split("\"id\":")
                .nth(1)
                .and_then(|rest| rest.split(',').next());
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            (name.expect("a name"), id.expect("an id").to_owned())
        })
        .collect();
    ids.sort();
    ids
}

#[test]
fn a_restart_adopts_what_is_pinned_and_changes_nothing() {
    if !is_root() {
        return skip("needs root");
    }
    let (bpffs, cgroup) = (Bpffs::new().unwrap(), Cgroup::new().unwrap());
    let (netns, ifindex) = namespace_with_interface();
    let attach = |dataplane: &Dataplane| {
        netns.run(|| {
            let mut all = vec![dataplane.attach_uplink(ifindex).unwrap()];
            all.push(dataplane.attach_host(ifindex).unwrap());
            all.push(dataplane.attach_pod("veth0", ifindex).unwrap());
            let cgroup = dataplane.attach_cgroup(cgroup.path()).unwrap();
            all.extend(cgroup.into_iter().map(|(_, attached)| attached));
            all
        })
    };

    let first = Dataplane::open(&bpffs.pin_dir(), &small()).unwrap();
    assert_eq!(attach(&first), [Attached::Created; 8]);
    let (links, programs) = (first.links().unwrap(), program_ids(&bpffs));
    assert_eq!(programs.len(), Program::ALL.len());
    drop(first);

    let second = Dataplane::open(&bpffs.pin_dir(), &small()).unwrap();
    assert_eq!(attach(&second), [Attached::Adopted; 8]);
    assert_eq!(second.links().unwrap(), links, "the links are the same");
    assert_eq!(
        program_ids(&bpffs),
        programs,
        "the pinned programs are the same"
    );
    assert_eq!(second.attached_pods().unwrap(), ["veth0"]);
    drop(second);

    // An agent whose object is another file with the same programs loads them, and finds that they are the same.
    let programs_dir = bpffs.pin_dir().join("programs");
    for entry in std::fs::read_dir(&programs_dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::remove_dir(path).unwrap();
        }
    }
    let third = Dataplane::open(&bpffs.pin_dir(), &small()).unwrap();
    assert_eq!(attach(&third), [Attached::Adopted; 8]);
    assert_eq!(third.links().unwrap(), links, "the links are the same");
    assert_eq!(
        program_ids(&bpffs),
        programs,
        "the pinned programs are the same"
    );
}

#[test]
fn programs_that_must_use_another_map_replace_the_old_ones_in_their_links() {
    if !is_root() {
        return skip("needs root");
    }
    let (bpffs, cgroup) = (Bpffs::new().unwrap(), Cgroup::new().unwrap());
    let (netns, ifindex) = namespace_with_interface();
    let first = Dataplane::open(&bpffs.pin_dir(), &small()).unwrap();
    netns.run(|| first.attach_uplink(ifindex)).unwrap();
    first.attach_cgroup(cgroup.path()).unwrap();
    let (links, programs) = (first.links().unwrap(), program_ids(&bpffs));
    drop(first);

    // The instructions stay the same, but the pinned programs still write to the map whose pin is gone.
    std::fs::remove_file(bpffs.pin_dir().join(names::CURSOR)).unwrap();
    let second = Dataplane::open(&bpffs.pin_dir(), &small()).unwrap();
    let attached = netns.run(|| second.attach_uplink(ifindex)).unwrap();
    assert_eq!(attached, Attached::Replaced);
    let attached = second.attach_cgroup(cgroup.path()).unwrap();
    assert!(
        attached.contains(&(Program::Connect4, Attached::Replaced)),
        "{attached:?}"
    );
    let (links_after, programs_after) = (second.links().unwrap(), program_ids(&bpffs));
    for (before, after) in links.iter().zip(&links_after) {
        assert_eq!((&before.name, before.target), (&after.name, after.target));
    }
    let uplink = |links: &[Link]| {
        links
            .iter()
            .find(|link| link.name == "from_network")
            .map(|link| link.program_id)
    };
    assert_ne!(uplink(&links), uplink(&links_after));
    assert_ne!(programs, programs_after);
}

#[test]
fn a_link_whose_interface_is_gone_is_made_anew() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let (netns, ifindex) = namespace_with_interface();
    let dataplane = Dataplane::open(&bpffs.pin_dir(), &small()).unwrap();
    netns
        .run(|| dataplane.attach_pod("veth0", ifindex))
        .unwrap();
    netns.ip("link del veth0").unwrap();
    assert_eq!(dataplane.links().unwrap()[0].target, LinkTarget::Gone);

    netns
        .ip("link add veth0 type veth peer name veth1")
        .unwrap();
    let ifindex = netns.ifindex("veth0").unwrap();
    assert_eq!(
        netns
            .run(|| dataplane.attach_pod("veth0", ifindex))
            .unwrap(),
        Attached::Created
    );
    assert_eq!(
        dataplane.links().unwrap()[0].target,
        LinkTarget::Interface { ifindex }
    );
    assert!(dataplane.detach_pod("veth0").unwrap());
    assert!(
        !dataplane.detach_pod("veth0").unwrap(),
        "nothing is left to detach"
    );
    assert!(dataplane.links().unwrap().is_empty());
}

#[test]
fn a_connection_table_of_an_impossible_size_is_refused_by_name() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    for (size, part) in [
        (0, "0 entries"),
        (1000, "a multiple of 64"),
        (1 << 21, "1048576"),
    ] {
        let mut options = small();
        options.max_entries.insert(names::CONN6, size);
        let error = Dataplane::open(&bpffs.pin_dir(), &options).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("conn6_v2") && text.contains(part), "{text}");
    }
}

/// The dataplane with a table for so many sockets.
fn open_with_sockets(bpffs: &Bpffs, entries: u32) -> Result<Dataplane, Error> {
    let mut options = small();
    options.max_entries.insert(names::SOCKET4, entries);
    Dataplane::open(&bpffs.pin_dir(), &options)
}

fn socket(cookie: u64) -> (u64, SocketOrigin<Addr4>) {
    let origin = SocketOrigin {
        frontend_port_be: cookie as u16,
        ..SocketOrigin::default()
    };
    (cookie, origin)
}

#[test]
fn what_the_programs_noted_outlives_a_change_of_its_tables_size() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let cgroup = Cgroup::new().unwrap();
    let before = open_with_sockets(&bpffs, 1024).unwrap();
    before.attach_cgroup(cgroup.path()).unwrap();
    let (key, origin) = socket(1);
    before.maps().v4.socket.set(&key, &origin).unwrap();

    let after = open_with_sockets(&bpffs, 2048).unwrap();
    let table = &after.maps().v4.socket;
    assert_eq!(table.capacity(), 2048);
    assert_eq!(table.get(&key).unwrap(), Some(origin));
    // The programs that are attached still write to the old table.
    let (late, late_origin) = socket(2);
    before.maps().v4.socket.set(&late, &late_origin).unwrap();
    let attached = after.attach_cgroup(cgroup.path()).unwrap();
    assert!(attached.contains(&(Program::Connect4, Attached::Replaced)));
    assert_eq!(after.finish_resize().unwrap(), [names::SOCKET4]);
    assert_eq!(table.get(&late).unwrap(), Some(late_origin));
    assert_eq!(after.finish_resize().unwrap(), [""; 0], "once is enough");
}

#[test]
fn a_change_of_size_that_was_interrupted_is_taken_up_by_the_next_start() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let (key, origin) = socket(1);
    let before = open_with_sockets(&bpffs, 1024).unwrap();
    drop(open_with_sockets(&bpffs, 2048).unwrap());
    before.maps().v4.socket.set(&key, &origin).unwrap();
    // Another size waits until the first change is complete.
    let next = open_with_sockets(&bpffs, 4096).unwrap();
    assert_eq!(next.maps().v4.socket.capacity(), 2048);
    assert_eq!(next.maps().v4.socket.get(&key).unwrap(), Some(origin));
    next.finish_resize().unwrap();
    let last = open_with_sockets(&bpffs, 4096).unwrap();
    assert_eq!(last.maps().v4.socket.capacity(), 4096);
    assert_eq!(last.maps().v4.socket.get(&key).unwrap(), Some(origin));
}

#[test]
fn a_table_that_holds_more_than_its_new_size_stays_and_says_how_much_it_holds() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let before = open_with_sockets(&bpffs, 2048).unwrap();
    for port in 1..=1500 {
        let (key, origin) = socket(port);
        before.maps().v4.socket.set(&key, &origin).unwrap();
    }
    let error = open_with_sockets(&bpffs, 1024).unwrap_err().to_string();
    for part in ["socket4_v", "1500 entries", "1024", "at least"] {
        assert!(error.contains(part), "{part} in: {error}");
    }
    let again = open_with_sockets(&bpffs, 2048).unwrap();
    assert_eq!(again.maps().v4.socket.entries().unwrap().len(), 1500);
}

#[test]
fn a_pinned_map_of_another_layout_is_refused_by_name() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    drop(Dataplane::open(&bpffs.pin_dir(), &small()).unwrap());
    let pin = bpffs.pin_dir().join(names::CONN4);
    std::fs::remove_file(&pin).unwrap();
    let made = Command::new("bpftool")
        .args(["map", "create"])
        .arg(&pin)
        .args("type hash key 4 value 4 entries 1024 name other".split(' '))
        .status()
        .unwrap();
    assert!(made.success());
    let error = Dataplane::open(&bpffs.pin_dir(), &small()).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::LayoutDiffers { map, .. } if map == names::CONN4),
        "{text}"
    );
    for part in [names::CONN4, "key 4 B value 4 B", "remove the pin"] {
        assert!(text.contains(part), "{part} in: {text}");
    }
}

#[test]
fn a_connection_table_keeps_its_size_and_its_connections() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let before = Dataplane::open(&bpffs.pin_dir(), &small()).unwrap();
    let mut other = small();
    other.max_entries.insert(names::CONN4, 2048);
    let after = Dataplane::open(&bpffs.pin_dir(), &other).unwrap();
    let size = |dataplane: &Dataplane| {
        let layouts = dataplane.maps().layouts().unwrap().into_iter();
        let mut layouts = layouts.filter(|(name, ..)| *name == names::CONN4);
        layouts.next().map(|(_, layout, _)| layout.max_entries)
    };
    assert_eq!(size(&after), Some(1024));
    assert_eq!(size(&after), size(&before));
}

#[test]
fn a_directory_outside_a_bpffs_is_refused_with_the_way_out() {
    if !is_root() {
        return skip("needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = Dataplane::open(&dir.path().join("fairlead"), &small())
        .unwrap_err()
        .to_string();
    assert!(error.contains("mount -t bpf bpf"), "{error}");
}

#[test]
fn asking_for_the_log_of_an_object_that_writes_none_is_no_failure() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let options = Options {
        log: true,
        ..small()
    };
    drop(Dataplane::open(&bpffs.pin_dir(), &options).unwrap());
    Dataplane::open(&bpffs.pin_dir(), &options).unwrap();
}

#[test]
fn reading_needs_no_agent_and_cannot_write() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let error = Maps::open_read_only(&bpffs.pin_dir())
        .unwrap_err()
        .to_string();
    assert!(error.contains("config_v3 is not pinned"), "{error}");

    drop(Dataplane::open(&bpffs.pin_dir(), &small()).unwrap());
    let maps = Maps::open_read_only(&bpffs.pin_dir()).unwrap();
    assert_eq!(maps.v4.conns.capacity(), 1024);
    assert!(maps.v4.conns.entries().is_empty());
    let key = ConnKey::default();
    let error = maps.v4.conns.remove(&key).unwrap_err().to_string();
    assert!(error.contains("map conn4_v2: remove"), "{error}");
    assert!(
        maps.drops()
            .unwrap()
            .iter()
            .all(|(_, counter)| counter.packets == 0)
    );
    let error = maps.cursor.set(&0, &1).unwrap_err();
    assert_eq!(
        error.source.raw_os_error(),
        Some(nix::errno::Errno::EPERM as i32)
    );
}

#[test]
fn bpftool_prints_the_names_of_fields() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let dataplane = Dataplane::open(&bpffs.pin_dir(), &small()).unwrap();
    let service = ebpf_abi::Service {
        slot_base: 77,
        slot_count: 3,
        ..ebpf_abi::Service::default()
    };
    dataplane.maps().service.set(&5, &service).unwrap();
    let output = Command::new("bpftool")
        .args(["map", "dump", "pinned"])
        .arg(bpffs.pin_dir().join(names::SERVICE))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("\"slot_base\": 77") && text.contains("\"slot_count\": 3"),
        "{text}"
    );
}
