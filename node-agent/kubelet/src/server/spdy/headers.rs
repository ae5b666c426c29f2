//! Name/value header blocks (SPDY/3.1, section 2.6.10): one zlib stream for each direction of a connection, flushed after
//! every block, with a dictionary that both sides know.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::frame::FrameError;

/// The most that a block may come to, unpacked, in bytes; ours of port-forwarding have less than a hundred.
const BLOCK_MAX: usize = 16 * 1024;
const CHUNK: usize = 1024;

/// Names and values with their lengths in front, as they stand in a block.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age \
allow authorization cache-control connection content-base content-encoding content-language content-length \
content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since \
if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning \
www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin";
/// What follows them.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec \
00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,\
utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        put(&mut dictionary, word.replace('_', " ").as_bytes());
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
});

/// Names, which are lower-case, and their values.
pub(crate) type Headers = Vec<(String, String)>;

/// Unpacks the blocks of one connection, in their order.
#[derive(Debug)]
pub(crate) struct Unpacker {
    zlib: Decompress,
}

/// Packs the blocks of one connection.
#[derive(Debug)]
pub(crate) struct Packer {
    zlib: Compress,
}

impl Unpacker {
    pub fn new() -> Self {
        Self {
            zlib: Decompress::new(true),
        }
    }

    /// # Errors
    ///
    /// A block that cannot be read: nothing after it can be.
    pub fn unpack(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        let mut plain = Vec::new();
        let mut rest = block;
        loop {
            if plain.len() > BLOCK_MAX {
                return Err(FrameError::HeadersTooLong { limit: BLOCK_MAX });
            }
            plain.reserve(CHUNK);
            let (before, held) = (self.zlib.total_in(), plain.len());
            let outcome = self
                .zlib
                .decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            let used = usize::try_from(self.zlib.total_in() - before).unwrap_or(rest.len());
            rest = &rest[used.min(rest.len())..];
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.zlib.set_dictionary(&DICTIONARY);
                    set.map_err(|_| FrameError::Headers)?;
                    continue;
                }
                Err(_) => return Err(FrameError::Headers),
                Ok(_) => {}
            }
            // More comes only if it filled what it was given.
            if rest.is_empty() && plain.len() < plain.capacity() {
                break;
            }
            if used == 0 && plain.len() == held {
                return Err(FrameError::Headers);
            }
        }
        parse(&plain)
    }
}

impl Packer {
    /// # Errors
    ///
    /// If zlib cannot be set up.
    pub fn new() -> Result<Self, FrameError> {
        let mut zlib = Compress::new(Compression::fast(), true);
        let set = zlib.set_dictionary(&DICTIONARY);
        set.map_err(|_| FrameError::Headers)?;
        Ok(Self { zlib })
    }

    /// # Errors
    ///
    /// If zlib fails.
    pub fn pack(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>, FrameError> {
        let mut plain = length(headers.len()).to_vec();
        for (name, value) in headers {
            put(&mut plain, name.as_bytes());
            put(&mut plain, value.as_bytes());
        }
        let mut packed = Vec::new();
        let mut rest = plain.as_slice();
        loop {
            packed.reserve(CHUNK);
            let before = self.zlib.total_in();
            self.zlib
                .compress_vec(rest, &mut packed, FlushCompress::Sync)
                .map_err(|_| FrameError::Headers)?;
            let used = usize::try_from(self.zlib.total_in() - before).unwrap_or(rest.len());
            rest = &rest[used.min(rest.len())..];
            if rest.is_empty() && packed.len() < packed.capacity() {
                return Ok(packed);
            }
        }
    }
}

fn put(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&length(text.len()));
    out.extend_from_slice(text);
}

fn length(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()
}

fn parse(plain: &[u8]) -> Result<Headers, FrameError> {
    let mut rest = plain;
    let mut headers = Headers::new();
    for _ in 0..number(&mut rest)? {
        let name = text(&mut rest)?;
        headers.push((name, text(&mut rest)?));
    }
    Ok(headers)
}

fn number(rest: &mut &[u8]) -> Result<u32, FrameError> {
    let (bytes, after) = rest.split_first_chunk().ok_or(FrameError::Headers)?;
    *rest = after;
    Ok(u32::from_be_bytes(*bytes))
}

fn text(rest: &mut &[u8]) -> Result<String, FrameError> {
    let length = usize::try_from(number(rest)?).map_err(|_| FrameError::Headers)?;
    let (bytes, after) = rest.split_at_checked(length).ok_or(FrameError::Headers)?;
    *rest = after;
    String::from_utf8(bytes.to_vec()).map_err(|_| FrameError::Headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_one_that_clients_have() {
        assert_eq!(DICTIONARY.len(), 1423);
        let mut zlib = Compress::new(Compression::fast(), true);
        // The Adler-32 that kubectl's first block names.
        assert_eq!(zlib.set_dictionary(&DICTIONARY).unwrap(), 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_follow_each_other_in_one_stream() {
        let mut packer = Packer::new().unwrap();
        let mut unpacker = Unpacker::new();
        for id in 0..300 {
            let id = id.to_string();
            let headers = [
                ("streamtype", "error"),
                ("port", "8080"),
                ("requestid", &id),
            ];
            let packed = packer.pack(&headers).unwrap();
            let unpacked = unpacker.unpack(&packed).unwrap();
            let expected = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(unpacked, expected);
        }
        assert_eq!(unpacker.unpack(&packer.pack(&[]).unwrap()).unwrap(), []);
    }

    #[test]
    fn a_block_that_unpacks_to_too_much_is_refused() {
        let much = "a".repeat(10 * BLOCK_MAX);
        let packed = Packer::new().unwrap().pack(&[("much", &much)]).unwrap();
        assert!(packed.len() < BLOCK_MAX);
        assert!(matches!(
            Unpacker::new().unpack(&packed),
            Err(FrameError::HeadersTooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(blocks: Vec<Vec<u8>>, plain: Vec<u8>) {
            let mut unpacker = Unpacker::new();
            for block in blocks {
                let _ = unpacker.unpack(&block);
            }
            let _ = parse(&plain);
        }
    }
}
