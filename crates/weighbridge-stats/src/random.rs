//! Counter-based random numbers: a draw depends on (seed, replicate, index) alone, so
//! neither thread count nor order of evaluation can change a result.

/// Finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64 uniform bits for one (seed, replicate, index).
pub(crate) fn bits(seed: u64, replicate: u64, index: u64) -> u64 {
    mix(mix(mix(seed) ^ replicate) ^ index)
}

/// Uniform index in `0..n`, by multiply-high; bias below n·2⁻⁶⁴.
pub(crate) fn below(seed: u64, replicate: u64, index: u64, n: usize) -> usize {
    ((u128::from(bits(seed, replicate, index)) * n as u128) >> 64) as usize
}
