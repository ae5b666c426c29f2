//! Compile-time proof of sizes and offsets: what the kernel, bpftool and an older agent's pins rely on.

use core::mem::{offset_of, size_of};

use crate::*;

const _: () = {
    assert!(size_of::<FrontendKey<Addr4>>() == 8);
    assert!(size_of::<FrontendKey<Addr6>>() == 20);
    assert!(size_of::<Frontend>() == 12);
    assert!(size_of::<RangeKey<Addr4>>() == 12);
    assert!(size_of::<RangeKey<Addr6>>() == 24);
    assert!(size_of::<Service>() == 24);
    assert!(size_of::<AffinityKey>() == 24);
    assert!(size_of::<Affinity>() == 16);
    assert!(size_of::<ServiceName>() == 196);
    assert!(maps::SERVICE_NAME_SIZE == maps::SERVICE_SIZE);
    assert!(size_of::<Backend<Addr4>>() == 12);
    assert!(size_of::<Backend<Addr6>>() == 24);
    assert!(size_of::<ConnKey<Addr4>>() == 16);
    assert!(size_of::<ConnKey<Addr6>>() == 40);
    assert!(size_of::<Conn<Addr4>>() == 32);
    assert!(size_of::<Conn<Addr6>>() == 56);
    assert!(offset_of!(Conn<Addr4>, src) == 8);
    assert!(offset_of!(Conn<Addr6>, src_port_be) == 40);
    assert!(size_of::<FragmentKey<Addr4>>() == 16);
    assert!(size_of::<FragmentKey<Addr6>>() == 40);
    assert!(size_of::<FragmentPorts>() == 4);
    assert!(size_of::<Endpoint>() == 24);
    assert!(size_of::<RouteKey<Addr4>>() == 8);
    assert!(size_of::<RouteKey<Addr6>>() == 20);
    assert!(size_of::<Peer>() == 104);
    assert!(offset_of!(Peer, underlay_addr) == 80);
    assert!(size_of::<Config>() == 80);
    assert!(offset_of!(Config, v4) == 28);
    assert!(offset_of!(Config, host_netns_cookie) == 72);
    assert!(size_of::<SocketOrigin<Addr4>>() == 12);
    assert!(size_of::<SocketOrigin<Addr6>>() == 36);
    assert!(size_of::<Counter>() == 16);
    assert!(maps::DROP_SIZE == maps::DROP_REASONS);
};
