//! Never an illegal instruction: what was compiled against what this machine has.
//!
//! `std::is_x86_feature_detected!` cannot tell: in a program compiled with `target-cpu=native` it is
//! true at compile time, on whatever machine the program runs. So CPUID is asked.

use weighbridge_core::{Error, ErrorKind, Result};

/// Fails if the kernels were compiled for instructions that this machine does not have. To be
/// called before any of them can run.
pub(crate) fn check() -> Result<()> {
    compare(&compiled_for(), &of_this_machine())
}

/// Fails, naming what is missing, if `compiled` has something that `machine` does not have.
fn compare(compiled: &[&'static str], machine: &[&'static str]) -> Result<()> {
    let missing: Vec<_> = compiled.iter().filter(|name| !machine.contains(name)).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Engine,
        format!(
            "llama.cpp in this program was compiled for CPU instructions that this machine does \
             not have ({}), and would crash; build on this machine with `cargo xtask eval`, or \
             build without `-C target-cpu=native` and with `{}` in the environment, or with the \
             feature `dynamic-backends`, which chooses when it runs",
            missing.join(", "),
            remedy(&missing).join(" ")
        ),
    )
    .with("missing", missing.join(",")))
}

/// The build variables of ggml that leave these instructions out.
fn remedy(missing: &[&'static str]) -> Vec<&'static str> {
    let mut variables = Vec::new();
    for name in missing {
        let variable = match *name {
            "sse4.2" => "GGML_SSE42=OFF",
            "avx" => "GGML_AVX=OFF",
            "avx2" => "GGML_AVX2=OFF",
            "f16c" => "GGML_F16C=OFF",
            "fma" => "GGML_FMA=OFF",
            "bmi2" => "GGML_BMI2=OFF",
            "avxvnni" => "GGML_AVX_VNNI=OFF",
            "avx512vbmi" => "GGML_AVX512_VBMI=OFF",
            "avx512vnni" => "GGML_AVX512_VNNI=OFF",
            "avx512bf16" => "GGML_AVX512_BF16=OFF",
            "amx-int8" => "GGML_AMX_INT8=OFF",
            name if name.starts_with("avx512") => "GGML_AVX512=OFF",
            _ => "GGML_NATIVE=OFF",
        };
        if !variables.contains(&variable) {
            variables.push(variable);
        }
    }
    variables
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{compiled_for, of_this_machine};

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use other::{compiled_for, of_this_machine};

/// Elsewhere ggml is compiled for the target's base level unless it was asked otherwise.
#[cfg(not(target_arch = "x86_64"))]
mod other {
    pub(crate) fn compiled_for() -> Vec<&'static str> {
        Vec::new()
    }

    pub(crate) fn of_this_machine() -> Vec<&'static str> {
        Vec::new()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    use crate::native::saved_registers;

    /// Registers that the system must save for a feature to be usable, as bits of XCR0.
    const NONE: u64 = 0;
    const AVX: u64 = 0b110;
    const AVX512: u64 = 0b1110_0110;
    const AMX: u64 = 0b110 << 16;

    /// A feature: name, CPUID leaf and subleaf, register (0 = eax … 3 = edx), bit, registers to be
    /// saved, and whether this program was compiled for it.
    type Feature = (&'static str, u32, u32, usize, u32, u64, bool);

    /// With `-C target-cpu=native` ggml is compiled with `-march=native`, which allows the C
    /// compiler whatever it allows rustc, so rustc's list is part of what ggml needs.
    macro_rules! features {
        ($($name:tt $leaf:literal $subleaf:literal $register:literal $bit:literal $saved:ident;)*) => {
            [$(($name, $leaf, $subleaf, $register, $bit, $saved, cfg!(target_feature = $name))),*]
        };
    }

    // Intel's Software Developer's Manual, volume 2, CPUID; AMD's manual 24594 for 0x8000_0001.
    const FEATURES: [Feature; 35] = features! {
        "sse3" 1 0 2 0 NONE;
        "pclmulqdq" 1 0 2 1 NONE;
        "ssse3" 1 0 2 9 NONE;
        "fma" 1 0 2 12 AVX;
        "sse4.1" 1 0 2 19 NONE;
        "sse4.2" 1 0 2 20 NONE;
        "movbe" 1 0 2 22 NONE;
        "popcnt" 1 0 2 23 NONE;
        "aes" 1 0 2 25 NONE;
        "avx" 1 0 2 28 AVX;
        "f16c" 1 0 2 29 AVX;
        "rdrand" 1 0 2 30 NONE;
        "lzcnt" 0x8000_0001 0 2 5 NONE;
        "bmi1" 7 0 1 3 NONE;
        "avx2" 7 0 1 5 AVX;
        "bmi2" 7 0 1 8 NONE;
        "avx512f" 7 0 1 16 AVX512;
        "avx512dq" 7 0 1 17 AVX512;
        "adx" 7 0 1 19 NONE;
        "avx512ifma" 7 0 1 21 AVX512;
        "avx512cd" 7 0 1 28 AVX512;
        "sha" 7 0 1 29 NONE;
        "avx512bw" 7 0 1 30 AVX512;
        "avx512vl" 7 0 1 31 AVX512;
        "avx512vbmi" 7 0 2 1 AVX512;
        "avx512vbmi2" 7 0 2 6 AVX512;
        "gfni" 7 0 2 8 NONE;
        "vaes" 7 0 2 9 AVX;
        "avx512vnni" 7 0 2 11 AVX512;
        "avx512bitalg" 7 0 2 12 AVX512;
        "avx512vpopcntdq" 7 0 2 14 AVX512;
        "avx512fp16" 7 0 3 23 AVX512;
        "avxvnni" 7 1 0 4 AVX;
        "avx512bf16" 7 1 0 5 AVX512;
        "amx-int8" 7 0 3 25 AMX;
    };

    /// What must be there for the linked kernels to run.
    pub(crate) fn compiled_for() -> Vec<&'static str> {
        #[cfg(not(feature = "dynamic-backends"))]
        let linked = crate::native::compiled_into_ggml();
        #[cfg(feature = "dynamic-backends")]
        let linked: Vec<&'static str> = Vec::new();
        let is_needed = |feature: &&Feature| feature.6 || linked.contains(&feature.0);
        FEATURES.iter().filter(is_needed).map(|feature| feature.0).collect()
    }

    /// What is there and usable.
    pub(crate) fn of_this_machine() -> Vec<&'static str> {
        let saved = saved_registers();
        let has = |&&(_, leaf, subleaf, register, bit, needed, _): &&Feature| {
            if __cpuid(leaf & 0x8000_0000).eax < leaf {
                return false;
            }
            let found = __cpuid_count(leaf, subleaf);
            let registers = [found.eax, found.ebx, found.ecx, found.edx];
            registers[register] >> bit & 1 == 1 && saved & needed == needed
        };
        FEATURES.iter().filter(has).map(|feature| feature.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        assert!(compare(&[], &[]).is_ok());
        assert!(compare(&["avx2", "fma"], &["avx", "fma", "avx2"]).is_ok());
        let error = compare(&["avx2", "avx512f", "avx512bw", "avx512vnni"], &["avx2"]).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("(avx512f, avx512bw, avx512vnni)"), "{message}");
        assert!(message.contains("`GGML_AVX512=OFF GGML_AVX512_VNNI=OFF`"), "{message}");
        assert_eq!(error.context("missing"), Some("avx512f,avx512bw,avx512vnni"));
    }

    #[test]
    fn the_machine_that_runs_this_has_what_it_was_compiled_for() {
        check().unwrap();
    }

    /// The kernel reads CPUID on its own and names the features almost as Rust does.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn the_system_sees_the_same_machine() {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let line = info.lines().find(|line| line.starts_with("flags")).unwrap();
        let flags: Vec<&str> = line.split_whitespace().collect();
        let found = of_this_machine();
        let names = [
            ("sse3", "pni"),
            ("ssse3", "ssse3"),
            ("sse4.2", "sse4_2"),
            ("fma", "fma"),
            ("f16c", "f16c"),
            ("lzcnt", "abm"),
            ("avx", "avx"),
            ("avx2", "avx2"),
            ("bmi2", "bmi2"),
            ("avx512f", "avx512f"),
            ("avx512bw", "avx512bw"),
            ("avx512vnni", "avx512_vnni"),
            ("avx512bf16", "avx512_bf16"),
            ("avx512fp16", "avx512_fp16"),
            ("avxvnni", "avx_vnni"),
            ("avx512vbmi2", "avx512_vbmi2"),
            ("gfni", "gfni"),
            ("amx-int8", "amx_int8"),
        ];
        for (ours, theirs) in names {
            assert_eq!(found.contains(&ours), flags.contains(&theirs), "{ours}");
        }
    }
}
