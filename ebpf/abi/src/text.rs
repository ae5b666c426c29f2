//! Texts of a fixed size: UTF-8, filled up with zero bytes.

/// Cuts a text that is too long between two characters.
pub(crate) fn filled_up<const LEN: usize>(text: &str) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut end = text.len().min(LEN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
    bytes
}

/// Up to the first zero byte, or to what is no UTF-8.
pub(crate) fn read(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|&byte| byte == 0);
    let bytes = &bytes[..end.unwrap_or(bytes.len())];
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}
