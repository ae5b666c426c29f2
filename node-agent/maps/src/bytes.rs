//! Contract types to bytes and back: the one place that relies on [`Plain`].

use std::{mem::size_of, slice};

use ebpf_abi::Plain;

/// The bytes of a contract type as they go into a map.
pub(crate) fn as_bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` promises that there is no padding, so every byte is initialised; the slice borrows `value`.
    unsafe { slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A contract type from the bytes that a map holds.
///
/// # Panics
///
/// When `bytes` is shorter than the type: map sizes are checked when the map is opened.
pub(crate) fn from_bytes<T: Plain>(bytes: &[u8]) -> T {
    assert!(
        bytes.len() >= size_of::<T>(),
        "map element shorter than its type"
    );
    // SAFETY: the length was checked, `Plain` allows every bit pattern, and the read does not ask for alignment.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

#[cfg(test)]
mod tests {
    use ebpf_abi::{Addr4, FrontendKey};

    use super::*;

    #[test]
    fn bytes_are_in_the_order_of_the_fields() {
        let key = FrontendKey {
            addr: Addr4 {
                bytes: [10, 96, 0, 1],
            },
            port_be: 443_u16.to_be(),
            protocol: 6,
            pad: 0,
        };
        assert_eq!(as_bytes(&key), [10, 96, 0, 1, 1, 187, 6, 0]);
        assert_eq!(from_bytes::<FrontendKey<Addr4>>(as_bytes(&key)), key);
    }
}
