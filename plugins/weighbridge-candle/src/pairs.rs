//! Products of pairs of 16-bit integers, which vector units add up in 32 bits.

use pulp::{Arch, NullaryFnOnce, Scalar, Simd, bytemuck};

use crate::quant::finite_half;

/// Vectors whose 32-bit lanes may hold two 16-bit integers each, the first in the low half.
pub(crate) trait Pairs: Simd {
    /// `sums + a₀·b₀ + a₁·b₁` in each lane.
    #[inline(always)]
    fn add_pairs(self, a: Self::i32s, b: Self::i32s, mut sums: Self::i32s) -> Self::i32s {
        let (a, b) = (lanes(&a), lanes(&b));
        for ((sum, a), b) in lanes_mut(&mut sums).iter_mut().zip(a).zip(b) {
            let low = i32::from(*a as i16) * i32::from(*b as i16);
            *sum += low + (a >> 16) * (b >> 16);
        }
        sums
    }

    /// The first integers of `codes`, two in each lane.
    #[inline(always)]
    fn widen(self, codes: &[i8]) -> Self::i32s {
        let mut out = self.splat_i32s(0);
        for (out, [low, high]) in lanes_mut(&mut out).iter_mut().zip(codes.as_chunks::<2>().0) {
            *out = i32::from(i16::from(*low) as u16) | i32::from(*high) << 16;
        }
        out
    }

    /// The four bits from `SHIFT` on of each half of a lane, as an integer in that half.
    #[inline(always)]
    fn nibbles<const SHIFT: u32>(self, mut codes: Self::i32s) -> Self::i32s {
        lanes_mut(&mut codes).iter_mut().for_each(|lane| *lane = *lane >> SHIFT & 0x000f_000f);
        codes
    }

    /// The first of `halves`, which are finite numbers in binary16.
    #[inline(always)]
    fn widen_halves(self, halves: &[u16]) -> Self::f32s {
        let mut out = self.splat_f32s(0.0);
        let out_lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut out));
        for (out, half) in out_lanes.iter_mut().zip(halves) {
            *out = finite_half(*half);
        }
        out
    }

    /// The nearest `f32` of each lane.
    #[inline(always)]
    fn to_f32s(self, values: Self::i32s) -> Self::f32s {
        let mut out = self.splat_f32s(0.0);
        let out_lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut out));
        for (out, value) in out_lanes.iter_mut().zip(lanes(&values)) {
            *out = *value as f32;
        }
        out
    }
}

#[inline(always)]
fn lanes<T: bytemuck::Pod>(vector: &T) -> &[i32] {
    bytemuck::cast_slice(std::slice::from_ref(vector))
}

#[inline(always)]
fn lanes_mut<T: bytemuck::Pod>(vector: &mut T) -> &mut [i32] {
    bytemuck::cast_slice_mut(std::slice::from_mut(vector))
}

impl Pairs for Scalar {}

#[cfg(target_arch = "aarch64")]
impl Pairs for pulp::aarch64::Neon {}

#[cfg(target_arch = "x86_64")]
impl Pairs for pulp::x86::V3 {
    #[inline(always)]
    fn add_pairs(self, a: Self::i32s, b: Self::i32s, sums: Self::i32s) -> Self::i32s {
        let products = self.multiply_wrapping_add_adjacent_i16x16(pulp::cast(a), pulp::cast(b));
        self.add_i32s(sums, products)
    }

    #[inline(always)]
    fn widen(self, codes: &[i8]) -> Self::i32s {
        let codes = codes.first_chunk::<16>().expect("a vector's codes");
        pulp::cast(self.convert_i8x16_to_i16x16(pulp::cast(*codes)))
    }

    #[inline(always)]
    fn to_f32s(self, values: Self::i32s) -> Self::f32s {
        self.convert_i32x8_to_f32x8(values)
    }
}

#[cfg(target_arch = "x86_64")]
impl Pairs for pulp::x86::V4 {
    #[inline(always)]
    fn add_pairs(self, a: Self::i32s, b: Self::i32s, sums: Self::i32s) -> Self::i32s {
        let products = self.multiply_wrapping_add_adjacent_i16x32(pulp::cast(a), pulp::cast(b));
        self.add_i32s(sums, products)
    }

    #[inline(always)]
    fn widen(self, codes: &[i8]) -> Self::i32s {
        let codes = codes.first_chunk::<32>().expect("a vector's codes");
        pulp::cast(self.convert_i8x32_to_i16x32(pulp::cast(*codes)))
    }

    #[inline(always)]
    fn nibbles<const SHIFT: u32>(self, codes: Self::i32s) -> Self::i32s {
        let codes = self.shr_const_u32x16::<SHIFT>(pulp::cast(codes));
        pulp::cast(self.and_u32x16(codes, self.splat_u32x16(0x000f_000f)))
    }

    #[inline(always)]
    fn to_f32s(self, values: Self::i32s) -> Self::f32s {
        self.convert_i32x16_to_f32x16(values)
    }
}

/// What is to be done with the vectors of a machine.
pub(crate) trait WithPairs {
    type Output;

    /// Inlined by force, as all that it calls: only so it is compiled for these vectors.
    fn with_pairs<S: Pairs>(self, simd: S) -> Self::Output;
}

/// Runs it with the widest vectors of this machine.
pub(crate) fn dispatch<W: WithPairs>(work: W) -> W::Output {
    match Arch::new() {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(simd) => simd.vectorize(Run { simd, work }),
        #[cfg(target_arch = "x86_64")]
        Arch::V3(simd) => simd.vectorize(Run { simd, work }),
        #[cfg(target_arch = "aarch64")]
        Arch::Neon(simd) => simd.vectorize(Run { simd, work }),
        _ => Run { simd: Scalar::new(), work }.call(),
    }
}

/// Work with the vectors to do it with.
pub(crate) struct Run<S, W> {
    pub(crate) simd: S,
    pub(crate) work: W,
}

impl<S: Pairs, W: WithPairs> NullaryFnOnce for Run<S, W> {
    type Output = W::Output;

    #[inline(always)]
    fn call(self) -> W::Output {
        self.work.with_pairs(self.simd)
    }
}
