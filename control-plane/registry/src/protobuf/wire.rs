//! The fields of a protobuf message, one after the other, without knowledge of what they are.

/// A field's value as the wire tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields that are left. Ends after the first error.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), String> {
        let key = varint(&mut self.0)?;
        let number = u32::try_from(key >> 3).map_err(|_| "a field's number is too large")?;
        let value = match key & 7 {
            0 => Wire::Varint(varint(&mut self.0)?),
            1 => Wire::Fixed64(u64::from_le_bytes(take_array(&mut self.0)?)),
            2 => {
                let length = varint(&mut self.0)?;
                let length = usize::try_from(length).map_err(|_| TRUNCATED)?;
                Wire::Bytes(take(&mut self.0, length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(take_array(&mut self.0)?)),
            other => return Err(format!("wire type {other} of field {number} is not used")),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u32, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Wire<'a> {
    pub fn bytes(self, what: &str) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => Err(format!("{what} cannot be {other:?}")),
        }
    }

    pub fn varint(self) -> Result<u64, String> {
        match self {
            Self::Varint(number) => Ok(number),
            other => Err(format!("a number cannot be {}", other.name())),
        }
    }

    pub fn fixed64(self) -> Result<u64, String> {
        match self {
            Self::Fixed64(bits) => Ok(bits),
            other => Err(format!("a double cannot be {}", other.name())),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Varint(_) => "a varint",
            Self::Fixed64(_) => "64 bits",
            Self::Fixed32(_) => "32 bits",
            Self::Bytes(_) => "bytes",
        }
    }
}

const TRUNCATED: &str = "it ends in the middle of a field";

/// Seven bits a byte, the low ones first.
pub fn varint(from: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = take_array(from)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("a varint is longer than ten bytes".into())
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (taken, rest) = from.split_at_checked(length).ok_or(TRUNCATED)?;
    *from = rest;
    Ok(taken)
}

fn take_array<const N: usize>(from: &mut &[u8]) -> Result<[u8; N], String> {
    let (taken, rest) = from.split_first_chunk().ok_or(TRUNCATED)?;
    *from = rest;
    Ok(*taken)
}
