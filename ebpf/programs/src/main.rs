//! The eBPF object: one file per hook, each only glue between the kernel's helpers and `ebpf-packet`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    missing_debug_implementations,
    reason = "nothing formats values in the kernel"
)]

mod atomic;
mod conns;
mod crc;
mod drops;
mod maps;
mod node;
mod skb;
mod stages;
mod window;
mod xdp;

mod from_device;
mod from_host;
mod from_network;
mod from_pod;
mod from_vxlan;
mod socket;

/// The helpers are for GPL-compatible programs only; the sources are Apache-2.0 and may be used under the GPL here.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
