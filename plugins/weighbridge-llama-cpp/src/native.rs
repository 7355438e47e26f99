//! The calls into llama.cpp that the safe crate does not pass on, all of the whole process: its log,
//! its last words, its versions, and what it was compiled for. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write;

use llama_cpp_sys_2 as sys;

/// Lines of the engine's log that a thread keeps.
const MAX_LINES: usize = 200;
/// Bytes of a line that are kept.
const MAX_LINE_BYTES: usize = 1000;

thread_local! {
    // A model is loaded and driven by one thread, so a thread's lines are those of its model.
    static LOG: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

/// Takes over log and last words. Called once, before anything else of llama.cpp.
pub(crate) fn install() {
    // SAFETY: both functions store a pointer. The callbacks are static, take no user data, and
    // neither unwinds nor calls llama.cpp.
    unsafe {
        sys::llama_log_set(Some(keep_line), std::ptr::null_mut());
        sys::ggml_set_abort_callback(Some(last_words));
    }
}

unsafe extern "C" fn keep_line(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() || level == sys::GGML_LOG_LEVEL_DEBUG {
        return;
    }
    // SAFETY: ggml gives a string that ends with 0 and lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let is_continued = level == sys::GGML_LOG_LEVEL_CONT;
    // Neither a thread that ends nor a log line about a log line is worth a panic across C.
    let _ = LOG.try_with(|log| {
        if let Ok(mut log) = log.try_borrow_mut() {
            keep(&mut log, is_continued, &text);
        }
    });
}

fn keep(log: &mut VecDeque<String>, is_continued: bool, text: &str) {
    let mut is_continued = is_continued;
    for piece in text.split_inclusive('\n') {
        match log.back_mut() {
            Some(last) if is_continued && !last.ends_with('\n') => {
                if last.len() + piece.len() <= MAX_LINE_BYTES {
                    last.push_str(piece);
                }
            }
            _ => {
                let mut end = piece.len().min(MAX_LINE_BYTES);
                while !piece.is_char_boundary(end) {
                    end -= 1;
                }
                log.push_back(piece[..end].to_owned());
            }
        }
        is_continued = false;
    }
    while log.len() > MAX_LINES {
        log.pop_front();
    }
}

unsafe extern "C" fn last_words(message: *const c_char) {
    if message.is_null() {
        return;
    }
    // SAFETY: ggml gives a string that ends with 0 and lives during the call.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    // The process ends when this returns, so standard error is the only place left.
    let _ = writeln!(std::io::stderr(), "llama.cpp gave up and ends the process: {message}");
}

/// Takes what llama.cpp logged on this thread since the last call.
pub(crate) fn take_log() -> Vec<String> {
    LOG.with_borrow_mut(|log| {
        log.drain(..).map(|line| line.trim_end().to_owned()).filter(|l| !l.is_empty()).collect()
    })
}

/// Versions of llama.cpp and of ggml.
pub(crate) fn versions() -> (String, String) {
    // SAFETY: both return static strings that end with 0.
    unsafe { (text(sys::llama_version()), text(sys::ggml_version())) }
}

/// What the loaded backends say about themselves, such as `CPU : AVX2 = 1 | ...`.
///
/// Not to be called by two threads at once: the text lies in a static buffer.
pub(crate) fn system_info() -> String {
    // SAFETY: returns a string that ends with 0 and stays until the next call.
    unsafe { text(sys::llama_print_system_info()) }
}

/// # Safety
/// `pointer` is null or a string that ends with 0 and lives during the call.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: by the contract of this function.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The instruction sets that the linked CPU kernels were compiled for, by their names in Rust.
///
/// Safe on every CPU: each function only returns a constant.
#[cfg(all(target_arch = "x86_64", not(feature = "dynamic-backends")))]
pub(crate) fn compiled_into_ggml() -> Vec<&'static str> {
    // SAFETY: functions without arguments or state.
    let answers: [(i32, &[&'static str]); 13] = unsafe {
        [
            (sys::ggml_cpu_has_sse3(), &["sse3"]),
            (sys::ggml_cpu_has_ssse3(), &["ssse3"]),
            (sys::ggml_cpu_has_avx(), &["avx"]),
            (sys::ggml_cpu_has_avx2(), &["avx2"]),
            (sys::ggml_cpu_has_f16c(), &["f16c"]),
            (sys::ggml_cpu_has_fma(), &["fma"]),
            (sys::ggml_cpu_has_bmi2(), &["bmi2"]),
            (sys::ggml_cpu_has_avx_vnni(), &["avxvnni"]),
            (
                sys::ggml_cpu_has_avx512(),
                &["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"],
            ),
            (sys::ggml_cpu_has_avx512_vbmi(), &["avx512vbmi"]),
            (sys::ggml_cpu_has_avx512_vnni(), &["avx512vnni"]),
            (sys::ggml_cpu_has_avx512_bf16(), &["avx512bf16"]),
            (sys::ggml_cpu_has_amx_int8(), &["amx-int8"]),
        ]
    };
    answers
        .iter()
        .filter(|(has, _)| *has != 0)
        .flat_map(|(_, names)| names.iter().copied())
        .collect()
}

/// The vector registers that the system saves (XCR0); 0 if it saves none.
#[cfg(target_arch = "x86_64")]
pub(crate) fn saved_registers() -> u64 {
    use std::arch::x86_64::{__cpuid, _xgetbv};
    #[target_feature(enable = "xsave")]
    unsafe fn read() -> u64 {
        // SAFETY: the caller made sure that the instruction exists and is allowed.
        unsafe { _xgetbv(0) }
    }
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 0;
    }
    // SAFETY: OSXSAVE says that the instruction exists and that the system allows it.
    unsafe { read() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_kept_in_lines_and_bounded() {
        let mut log = VecDeque::new();
        keep(&mut log, false, "loading ");
        keep(&mut log, true, "12 ");
        keep(&mut log, true, "tensors\n");
        keep(&mut log, true, "next\nline\n");
        assert_eq!(log, ["loading 12 tensors\n", "next\n", "line\n"]);
        for i in 0..1000 {
            keep(&mut log, false, &format!("{i}{}\n", "é".repeat(2000)));
        }
        assert_eq!(log.len(), MAX_LINES);
        assert!(log.iter().all(|line| line.len() <= MAX_LINE_BYTES));
        assert!(log.back().is_some_and(|line| line.starts_with("999é")));
    }

    #[test]
    fn lines_are_of_the_thread_that_caused_them() {
        let line = |text: &CStr| {
            // SAFETY: the text ends with 0.
            unsafe { keep_line(sys::GGML_LOG_LEVEL_ERROR, text.as_ptr(), std::ptr::null_mut()) }
        };
        take_log();
        line(c"mine\n");
        std::thread::spawn(move || {
            line(c"another's\n");
            assert_eq!(take_log(), ["another's"]);
        })
        .join()
        .unwrap();
        assert_eq!(take_log(), ["mine"]);
        assert!(take_log().is_empty());
    }
}
