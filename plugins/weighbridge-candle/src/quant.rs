//! Rows of quantized tensors as codes with scales, following the layouts of ggml
//! (`ggml/src/ggml-common.h` and `dequantize_row_*` in `ggml/src/ggml-quants.c` of ggml 0.25.3).

use weighbridge_models::gguf::GgmlType;

/// How a type's values are made of codes: `scale · (code - zero) - min`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Form {
    /// Values that share a scale: 16 or 32.
    pub(crate) group: usize,
    /// Codes are of 0..16, two of which are kept in a byte; otherwise they are of -128..128.
    pub(crate) is_nibble: bool,
    /// What is taken from each code.
    pub(crate) zero: i32,
    /// There are mins.
    pub(crate) has_min: bool,
    /// Scales and mins are exact in binary16.
    pub(crate) has_halves: bool,
}

impl Form {
    /// `None` for types that are not of this kind.
    pub(crate) fn of(dtype: GgmlType) -> Option<Self> {
        let has_halves = matches!(
            dtype,
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q8_0
        );
        let form = |group, is_nibble, zero, has_min| {
            Some(Self { group, is_nibble, zero, has_min, has_halves })
        };
        match dtype {
            GgmlType::Q4_0 => form(32, true, 8, false),
            GgmlType::Q4_1 | GgmlType::Q4_K => form(32, true, 0, true),
            GgmlType::Q5_0 | GgmlType::Q8_0 => form(32, false, 0, false),
            GgmlType::Q5_1 | GgmlType::Q5_K => form(32, false, 0, true),
            GgmlType::Q2_K => form(16, false, 0, true),
            GgmlType::Q3_K | GgmlType::Q6_K => form(16, false, 0, false),
            _ => None,
        }
    }
}

/// A row of codes, with scales and mins of its groups.
#[derive(Debug, Default)]
pub(crate) struct Codes {
    pub(crate) codes: Vec<i8>,
    pub(crate) scales: Vec<f32>,
    pub(crate) mins: Vec<f32>,
}

impl Codes {
    /// Replaces the contents with a row of blocks.
    pub(crate) fn read(&mut self, dtype: GgmlType, row: &[u8]) {
        self.codes.clear();
        self.scales.clear();
        self.mins.clear();
        for block in row.chunks_exact(dtype.type_size() as usize) {
            match dtype {
                GgmlType::Q4_0 => self.legacy(block, 2, None, 0),
                GgmlType::Q4_1 => self.legacy(block, 4, None, 0),
                GgmlType::Q5_0 => self.legacy(block, 6, Some(2), 16),
                GgmlType::Q5_1 => self.legacy(block, 8, Some(4), 0),
                GgmlType::Q8_0 => {
                    self.scales.push(half(block, 0));
                    self.codes.extend(block[2..].iter().map(|code| *code as i8));
                }
                GgmlType::Q2_K => self.q2_k(block),
                GgmlType::Q3_K => self.q3_k(block),
                GgmlType::Q4_K => self.q4_k(block),
                GgmlType::Q5_K => self.q5_k(block),
                GgmlType::Q6_K => self.q6_k(block),
                _ => {}
            }
        }
    }

    /// Appends the values that the row stands for.
    pub(crate) fn append_values(&self, form: Form, out: &mut Vec<f32>) {
        for (group_idx, codes) in self.codes.chunks_exact(form.group).enumerate() {
            let scale = self.scales[group_idx];
            let min = if form.has_min { self.mins[group_idx] } else { 0.0 };
            out.extend(
                codes.iter().map(|code| scale * (i32::from(*code) - form.zero) as f32 - min),
            );
        }
    }

    /// A block of 32 with a scale, perhaps a min, perhaps fifth bits, and the low four bits from
    /// `at_low` on.
    fn legacy(&mut self, block: &[u8], at_low: usize, at_high: Option<usize>, zero: i8) {
        self.scales.push(half(block, 0));
        // A fifth bit takes four bytes; what is then left beyond the scale is a min.
        if at_low - at_high.map_or(0, |_| 4) == 4 {
            self.mins.push(-half(block, 2));
        }
        let low = &block[at_low..at_low + 16];
        let high = at_high.map_or(0, |at| u32::from_le_bytes([0, 1, 2, 3].map(|i| block[at + i])));
        let fifth = |i: usize| ((high >> i & 1) << 4) as i8;
        self.codes.extend(low.iter().enumerate().map(|(i, b)| (b & 15) as i8 + fifth(i) - zero));
        let upper = |(i, b): (usize, &u8)| (b >> 4) as i8 + fifth(i + 16) - zero;
        self.codes.extend(low.iter().enumerate().map(upper));
    }

    fn q2_k(&mut self, block: &[u8]) {
        let (small, codes) = (&block[..16], &block[16..80]);
        let (scale, min) = (half(block, 80), half(block, 82));
        self.scales.extend(small.iter().map(|s| scale * f32::from(s & 15)));
        self.mins.extend(small.iter().map(|s| min * f32::from(s >> 4)));
        for codes in codes.chunks_exact(32) {
            for shift in [0, 2, 4, 6] {
                self.codes.extend(codes.iter().map(|code| (code >> shift & 3) as i8));
            }
        }
    }

    fn q3_k(&mut self, block: &[u8]) {
        let (high, codes, small) = (&block[..32], &block[32..96], &block[96..108]);
        let scale = half(block, 108);
        for i in 0..16 {
            let low = if i < 8 { small[i] & 15 } else { small[i - 8] >> 4 };
            let small = low | (small[8 + i % 4] >> (2 * (i / 4)) & 3) << 4;
            self.scales.push(scale * f32::from(small as i8 - 32));
        }
        for (half_idx, codes) in codes.chunks_exact(32).enumerate() {
            for i in 0..4 {
                let has_high = |high: &u8| high >> (half_idx * 4 + i) & 1 == 1;
                self.codes.extend(codes.iter().zip(high).map(|(code, high)| {
                    (code >> (2 * i) & 3) as i8 - if has_high(high) { 0 } else { 4 }
                }));
            }
        }
    }

    /// The eight scales and mins of Q4_K and Q5_K, six bits each.
    fn six_bits(&mut self, block: &[u8]) {
        let (scale, min, small) = (half(block, 0), half(block, 2), &block[4..16]);
        for i in 0..8 {
            let (s, m) = if i < 4 {
                (small[i] & 63, small[i + 4] & 63)
            } else {
                (small[i + 4] & 15 | small[i - 4] >> 6 << 4, small[i + 4] >> 4 | small[i] >> 6 << 4)
            };
            self.scales.push(scale * f32::from(s));
            self.mins.push(min * f32::from(m));
        }
    }

    fn q4_k(&mut self, block: &[u8]) {
        self.six_bits(block);
        for codes in block[16..144].chunks_exact(32) {
            self.codes.extend(codes.iter().map(|code| (code & 15) as i8));
            self.codes.extend(codes.iter().map(|code| (code >> 4) as i8));
        }
    }

    fn q5_k(&mut self, block: &[u8]) {
        self.six_bits(block);
        let high = &block[16..48];
        for (pair, codes) in block[48..176].chunks_exact(32).enumerate() {
            let fifth = |high: &u8, i: usize| (high >> (2 * pair + i) & 1) << 4;
            let codes = || codes.iter().zip(high);
            self.codes.extend(codes().map(|(code, high)| (code & 15 | fifth(high, 0)) as i8));
            self.codes.extend(codes().map(|(code, high)| (code >> 4 | fifth(high, 1)) as i8));
        }
    }

    fn q6_k(&mut self, block: &[u8]) {
        let scale = half(block, 208);
        self.scales.extend(block[192..208].iter().map(|small| scale * f32::from(*small as i8)));
        let (low, high) = (&block[..128], &block[128..192]);
        for (low, high) in low.chunks_exact(64).zip(high.chunks_exact(32)) {
            for i in 0..4 {
                let low = &low[i % 2 * 32..][..32];
                self.codes.extend(low.iter().zip(high).map(|(low, high)| {
                    let low = low >> (i / 2 * 4) & 15;
                    (low | (high >> (2 * i) & 3) << 4) as i8 - 32
                }));
            }
        }
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Bytes of one value of a type that is not quantized; 0 for others.
pub(crate) fn n_value_bytes(dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::F32 => 4,
        GgmlType::F16 | GgmlType::BF16 => 2,
        _ => 0,
    }
}

/// Whether values of a type can be computed with.
pub(crate) fn is_known(dtype: GgmlType) -> bool {
    n_value_bytes(dtype) > 0 || Form::of(dtype).is_some()
}

/// Appends the values of a row of any known type.
pub(crate) fn append_values(dtype: GgmlType, row: &[u8], codes: &mut Codes, out: &mut Vec<f32>) {
    match Form::of(dtype) {
        Some(form) => {
            codes.read(dtype, row);
            codes.append_values(form, out);
        }
        None => append_f32(row, dtype, out),
    }
}

/// Appends little-endian values as `f32`, exactly.
fn append_f32(bytes: &[u8], dtype: GgmlType, out: &mut Vec<f32>) {
    match dtype {
        GgmlType::F32 => {
            out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)))
        }
        GgmlType::F16 => {
            out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16_to_f32(u16::from_le_bytes(*b))));
        }
        GgmlType::BF16 => out.extend(
            bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)),
        ),
        _ => {}
    }
}

/// What the exponents of binary16 and binary32 differ by, as a factor.
const HALF_BIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);

/// [`f16_to_f32`] of a finite number, without a branch.
#[inline(always)]
pub(crate) fn finite_half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    f32::from_bits(sign | u32::from(bits & 0x7fff) << 13) * HALF_BIAS
}

/// The finite number of binary16 that a value is.
pub(crate) fn half_of(value: f32) -> u16 {
    let bits = (value / HALF_BIAS).to_bits();
    (bits >> 16 & 0x8000) as u16 | (bits >> 13 & 0x7fff) as u16
}

/// IEEE 754 binary16 to binary32, exactly.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits & 0x3ff);
    match exponent {
        // Zero and denormal numbers: fraction · 2^-24, which f32 holds exactly.
        0 => f32::from_bits(sign | (fraction as f32 / 16_777_216.0).to_bits()),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_becomes_the_same_number() {
        for bits in 0..=u16::MAX {
            let exponent = i32::from(bits >> 10 & 0x1f);
            let fraction = f64::from(bits & 0x3ff);
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let value = f64::from(f16_to_f32(bits));
            match exponent {
                0x1f if fraction == 0.0 => assert_eq!(value, sign * f64::INFINITY),
                0x1f => assert!(value.is_nan()),
                0 => assert_eq!(value, sign * fraction * 2f64.powi(-24)),
                _ => assert_eq!(value, sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15)),
            }
            assert_eq!(value.is_sign_negative(), sign < 0.0);
            if value.is_finite() {
                assert_eq!(finite_half(bits).to_bits(), f16_to_f32(bits).to_bits());
                assert_eq!(half_of(f16_to_f32(bits)), bits);
            }
        }
    }

    /// `tests/data/quant.py` made the blocks at random, so that every bit of a layout counts.
    #[test]
    fn blocks_of_every_type_have_the_values_that_gguf_py_gives_them() {
        let reference: serde_json::Value =
            serde_json::from_str(include_str!("../tests/data/quant.json")).unwrap();
        let types = reference["types"].as_object().unwrap();
        let known = GgmlType::ALL.iter().filter(|dtype| Form::of(**dtype).is_some());
        let mut n_types = 0;
        for dtype in known {
            let reference = &types[dtype.name()];
            let digits = reference["blocks"].as_str().unwrap().as_bytes();
            let byte = |digits: &[u8; 2]| {
                u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let blocks: Vec<u8> = digits.as_chunks::<2>().0.iter().map(byte).collect();
            let mut values = Vec::new();
            append_values(*dtype, &blocks, &mut Codes::default(), &mut values);
            let expected: Vec<f32> = reference["values"]
                .as_array()
                .unwrap()
                .iter()
                .map(|value| value.as_f64().unwrap() as f32)
                .collect();
            assert_eq!(values, expected, "{}", dtype.name());
            n_types += 1;
        }
        assert_eq!(n_types, types.len());
    }
}
