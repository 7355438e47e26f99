//! Completions that belong to a language: JSON Schema, regular expression, grammar, choice.
//!
//! A [`ConstraintFactory`] belongs to a model and compiles [`Constraint`]s with [llguidance]; a
//! [`ConstraintState`] belongs to a generation: it masks what may not come next, takes the token that
//! was drawn, and tells which tokens are forced after it.
//!
//! # What is enforced
//! - **JSON Schema**, drafts 4 to 2020-12. Properties come in the order of the schema; between two
//!   parts stand at most 40 characters of white space. What cannot be kept is an [`Unsupported`](ErrorKind::Unsupported) error named
//!   `schema.<keyword>`: `not`, `if`/`then`/`else`, `uniqueItems`, `contains`, `propertyNames`,
//!   `dependentRequired`, `dependentSchemas`, `dependencies`, `unevaluatedItems`,
//!   `unevaluatedProperties`, `$dynamicRef`, `oneOf` whose branches may overlap, `minProperties` and
//!   `maxProperties` beside optional names, `patternProperties` that may overlap, `$ref` to another
//!   document, formats other than those of llguidance, look-around in a `pattern`. The formats `date`
//!   and `date-time` admit 29 February of every year.
//! - **Regex**: the syntax of the `regex` crate; the whole text is matched. No look-around, no
//!   backreferences, no anchors but `^` and `$` at the ends.
//! - **Lark**: llguidance's dialect.
//! - **Choice**: exactly one of the texts.
//!
//! # Tokens
//! Every way to split a text into tokens is allowed, except where the grammar leaves only one text:
//! its tokens are those of the model's own encoder, which is what the model has seen in training.
//! Such tokens are *forced*: they are taken without a draw and fed together; if `logit_bias` bans one,
//! the generation fails, also where other tokens could write the same text. Near the end of forced
//! text, where a token could reach over it, nothing is forced; nor is anything with a vocabulary that
//! lacks the token of a single byte.
//!
//! # End
//! End ids are allowed where the text is in the language. If a text is complete and nothing can
//! follow, the generation ends at once, without asking the model for its end token.
//!
//! [llguidance]: https://github.com/guidance-ai/llguidance

mod grammar;
mod pending;
mod vocabulary;

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::toktrie::TokEnv;
use llguidance::{Matcher, ParserFactory};
use weighbridge_core::{Constraint, Error, ErrorKind, Result};

pub(crate) use pending::PendingMask;

use self::pending::MaskWorkers;
use self::vocabulary::Vocabulary;
use crate::sampler::TokenMask;
use crate::tokens::{TokenEncoder, TokenTable};

/// Compiles the constraints of one model.
pub struct ConstraintFactory {
    table: Arc<TokenTable>,
    encoder: Arc<dyn TokenEncoder>,
    built: OnceLock<Result<Built>>,
}

/// What is built once, for the first constraint.
struct Built {
    parsers: ParserFactory,
    workers: Option<Arc<MaskWorkers>>,
}

impl fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintFactory").field("is_built", &self.built.get().is_some()).finish()
    }
}

impl ConstraintFactory {
    /// Cheap: the vocabulary is prepared for the first constraint.
    pub fn new(table: Arc<TokenTable>, encoder: Arc<dyn TokenEncoder>) -> Self {
        Self { table, encoder, built: OnceLock::new() }
    }

    /// Compiles a constraint, up to and with the first mask. The first call also prepares the
    /// vocabulary, which takes hundreds of milliseconds for a large one.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] that names what cannot be kept; [`ErrorKind::InvalidRequest`] for
    /// what is not a schema, a regular expression or a grammar, and for a language without texts;
    /// [`ErrorKind::Constraint`] if it is too large, or if the vocabulary cannot write it.
    pub fn compile(&self, constraint: &Constraint) -> Result<ConstraintState> {
        let grammar = grammar::grammar(constraint)?;
        let built = match self.built.get_or_init(|| self.build()) {
            Ok(built) => built,
            Err(error) => return Err(Error::new(error.kind(), error.message().to_owned())),
        };
        let parser = built.parsers.create_parser(grammar).map_err(|error| {
            // The alternate form has the whole chain of causes.
            grammar::compile_error(constraint, &format!("{error:#}"))
        })?;
        let mut state = ConstraintState {
            matcher: Box::new(Matcher::new(Ok(parser))),
            mask: TokenMask::none(self.table.len()),
            has_mask: false,
            workers: built.workers.clone(),
        };
        state.mask()?;
        Ok(state)
    }

    fn build(&self) -> Result<Built> {
        let vocabulary = Vocabulary::new(&self.table, Arc::clone(&self.encoder));
        let env: TokEnv = Arc::new(vocabulary);
        let mut parsers = ParserFactory::new_simple(&env).map_err(|error| {
            Error::new(ErrorKind::Constraint, format!("the vocabulary is unusable: {error:#}"))
        })?;
        parsers.quiet();
        *parsers.limits_mut() = grammar::limits();
        Ok(Built { parsers, workers: MaskWorkers::for_vocabulary(self.table.len())? })
    }
}

/// How far a completion has come in its language.
pub struct ConstraintState {
    matcher: Box<Matcher>,
    mask: TokenMask,
    /// `mask` is that of the present state.
    has_mask: bool,
    workers: Option<Arc<MaskWorkers>>,
}

impl fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintState").field("is_complete", &self.is_complete()).finish()
    }
}

impl ConstraintState {
    /// What may come next. Computed on the first call after a token, which takes from microseconds
    /// to tens of milliseconds.
    ///
    /// # Errors
    /// [`ErrorKind::Constraint`] if the text is complete, if no token of the vocabulary can go on,
    /// or if the grammar needs too much work.
    pub fn mask(&mut self) -> Result<&TokenMask> {
        if !self.has_mask {
            let allowed = self
                .matcher
                .compute_mask()
                .map_err(|error| grammar::step_error(&format!("{error:#}")))?;
            self.mask.set_words(allowed.as_slice());
            self.has_mask = true;
        }
        Ok(&self.mask)
    }

    /// Takes a token that the mask allows and that is not an end id.
    ///
    /// # Errors
    /// [`ErrorKind::Constraint`] if the token is not allowed.
    pub fn commit(&mut self, id: u32) -> Result<()> {
        self.has_mask = false;
        self.matcher.consume_token(id).map_err(|error| grammar::step_error(&format!("{error:#}")))
    }

    /// Takes the tokens that are forced now and returns them: often none.
    ///
    /// # Errors
    /// [`ErrorKind::Constraint`] if the grammar needs too much work.
    pub fn take_forced(&mut self) -> Result<Vec<u32>> {
        let forced = self.matcher.consume_ff_tokens();
        if let Some(message) = self.matcher.get_error() {
            return Err(grammar::step_error(&message));
        }
        self.has_mask &= forced.is_empty();
        Ok(forced)
    }

    /// The text is in the language and nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}
