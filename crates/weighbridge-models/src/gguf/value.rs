//! A value of the metadata: kept as the file's bytes, decoded when asked for.

use std::fmt;

/// Type of a value or of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// The format's number of arrays, which are not a type of their own here.
    pub(super) const ARRAY_ID: u32 = 9;

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Str,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "str",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of one value; for a string, of the length before it.
    pub(super) fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
        }
    }
}

/// What a value is: a type, once or as an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    One(ValueType),
    Array(ValueType),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(ty) => f.write_str(ty.name()),
            Self::Array(ty) => write!(f, "array of {}", ty.name()),
        }
    }
}

/// One value, little-endian numbers or strings as the file has them.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) kind: Kind,
    pub(super) data: Data,
}

#[derive(Debug)]
pub(super) enum Data {
    Numbers(Box<[u8]>),
    Strings(Box<[Box<[u8]>]>),
}

impl Value {
    /// Number of elements; 1 for a value that is not an array.
    pub(super) fn len(&self) -> usize {
        match (&self.data, self.kind) {
            (Data::Strings(strings), _) => strings.len(),
            (Data::Numbers(bytes), Kind::One(ty) | Kind::Array(ty)) => bytes.len() / ty.size(),
        }
    }

    pub(super) fn is_array(&self) -> bool {
        matches!(self.kind, Kind::Array(_))
    }

    /// A string that is not an array.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match (&self.data, self.kind) {
            (Data::Strings(strings), Kind::One(_)) => strings.first().map(AsRef::as_ref),
            _ => None,
        }
    }

    /// An array of strings.
    pub(super) fn strings(&self) -> Option<&[Box<[u8]>]> {
        match (&self.data, self.kind) {
            (Data::Strings(strings), Kind::Array(_)) => Some(strings),
            _ => None,
        }
    }

    /// The integers, one or an array.
    pub(super) fn integers(&self) -> Option<impl Iterator<Item = i128>> {
        let decode: fn(&[u8]) -> i128 = match self.element() {
            ValueType::U8 => |b| u8::from_le_bytes(fixed(b)).into(),
            ValueType::I8 => |b| i8::from_le_bytes(fixed(b)).into(),
            ValueType::U16 => |b| u16::from_le_bytes(fixed(b)).into(),
            ValueType::I16 => |b| i16::from_le_bytes(fixed(b)).into(),
            ValueType::U32 => |b| u32::from_le_bytes(fixed(b)).into(),
            ValueType::I32 => |b| i32::from_le_bytes(fixed(b)).into(),
            ValueType::U64 => |b| u64::from_le_bytes(fixed(b)).into(),
            ValueType::I64 => |b| i64::from_le_bytes(fixed(b)).into(),
            ValueType::F32 | ValueType::F64 | ValueType::Bool | ValueType::Str => return None,
        };
        Some(self.numbers()?.map(decode))
    }

    /// The floating-point numbers, one or an array.
    pub(super) fn floats(&self) -> Option<impl Iterator<Item = f64>> {
        let decode: fn(&[u8]) -> f64 = match self.element() {
            ValueType::F32 => |b| f32::from_le_bytes(fixed(b)).into(),
            ValueType::F64 => |b| f64::from_le_bytes(fixed(b)),
            _ => return None,
        };
        Some(self.numbers()?.map(decode))
    }

    /// The truth values, one or an array; every byte but 0 is true, as in ggml.
    pub(super) fn bools(&self) -> Option<impl Iterator<Item = bool>> {
        match self.element() {
            ValueType::Bool => Some(self.numbers()?.map(|byte| byte != [0])),
            _ => None,
        }
    }

    fn element(&self) -> ValueType {
        let (Kind::One(ty) | Kind::Array(ty)) = self.kind;
        ty
    }

    fn numbers(&self) -> Option<impl Iterator<Item = &[u8]>> {
        match &self.data {
            Data::Numbers(bytes) => Some(bytes.chunks_exact(self.element().size())),
            Data::Strings(_) => None,
        }
    }
}

/// The bytes as an array of the size of its type, which `chunks_exact` gave them.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or([0; N])
}
