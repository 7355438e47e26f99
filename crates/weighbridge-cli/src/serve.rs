//! `weighbridge serve`.
