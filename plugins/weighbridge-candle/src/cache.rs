//! Keys and values of one sequence.

/// Positions by which a cache grows: growth copies, so not one by one.
const STEP: usize = 256;

/// What one position needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheShape {
    pub(crate) n_layers: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl CacheShape {
    /// Bytes of one position.
    pub(crate) fn n_bytes(self) -> usize {
        2 * self.n_layers * self.n_kv_heads * self.head_dim * size_of::<f32>()
    }
}

/// Keys and values of all layers of one sequence. Grows in steps, shrinks when it is cut.
#[derive(Debug)]
pub(crate) struct Cache {
    shape: CacheShape,
    layers: Vec<LayerCache>,
    len: usize,
}

/// Keys and values of one layer, contiguous per head.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) keys: Vec<Vec<f32>>, // (n_kv_heads, n_positions, head_dim)
    pub(crate) values: Vec<Vec<f32>>, // (n_kv_heads, n_positions, head_dim)
}

impl Cache {
    /// An empty one, which holds no memory.
    pub(crate) fn new(shape: CacheShape) -> Self {
        Self { shape, layers: Vec::new(), len: 0 }
    }

    /// Positions that are filled in all layers.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Declares that all layers were filled up to `len`.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// A layer, cut to the filled positions and with room for `n_new` more.
    ///
    /// What a failed computation left behind [`Cache::len`] is thrown away here.
    pub(crate) fn layer(&mut self, layer_idx: usize, n_new: usize) -> &mut LayerCache {
        let CacheShape { n_layers, n_kv_heads, head_dim } = self.shape;
        if self.layers.is_empty() {
            let rows = || vec![Vec::new(); n_kv_heads];
            self.layers.resize_with(n_layers, || LayerCache { keys: rows(), values: rows() });
        }
        let n_needed = self.len + n_new;
        let layer = &mut self.layers[layer_idx];
        for rows in layer.keys.iter_mut().chain(&mut layer.values) {
            rows.truncate(self.len * head_dim);
            if rows.capacity() < n_needed * head_dim {
                rows.reserve_exact(n_needed.next_multiple_of(STEP) * head_dim - rows.len());
            }
        }
        layer
    }

    /// Forgets the positions from `len` on, and gives memory back that would stay unused.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        if len == 0 {
            self.layers = Vec::new();
            return;
        }
        let head_dim = self.shape.head_dim;
        let n_kept = len.next_multiple_of(STEP) * head_dim;
        for layer in &mut self.layers {
            for rows in layer.keys.iter_mut().chain(&mut layer.values) {
                rows.truncate(len * head_dim);
                if rows.capacity() > n_kept + STEP * head_dim {
                    rows.shrink_to(n_kept);
                }
            }
        }
    }

    /// A copy of the first `len` positions.
    pub(crate) fn fork(&self, len: usize) -> Self {
        let len = len.min(self.len);
        if len == 0 {
            return Self::new(self.shape);
        }
        let head_dim = self.shape.head_dim;
        let copy = |rows: &Vec<f32>| {
            let mut copy = Vec::with_capacity(len.next_multiple_of(STEP) * head_dim);
            copy.extend_from_slice(&rows[..len * head_dim]);
            copy
        };
        let layers = self.layers.iter().map(|layer| LayerCache {
            keys: layer.keys.iter().map(copy).collect(),
            values: layer.values.iter().map(copy).collect(),
        });
        Self { shape: self.shape, layers: layers.collect(), len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n_bytes(cache: &Cache) -> usize {
        let rows = cache.layers.iter().flat_map(|layer| layer.keys.iter().chain(&layer.values));
        rows.map(|rows| rows.capacity() * size_of::<f32>()).sum()
    }

    fn fill(cache: &mut Cache, n_new: usize) {
        let shape = cache.shape;
        for layer_idx in 0..shape.n_layers {
            let layer = cache.layer(layer_idx, n_new);
            for rows in layer.keys.iter_mut().chain(&mut layer.values) {
                rows.extend(std::iter::repeat_n(1.0, n_new * shape.head_dim));
            }
        }
        cache.set_len(cache.len() + n_new);
    }

    #[test]
    fn memory_follows_the_length_in_steps() {
        let shape = CacheShape { n_layers: 2, n_kv_heads: 3, head_dim: 4 };
        let mut cache = Cache::new(shape);
        assert_eq!(n_bytes(&cache), 0);
        fill(&mut cache, 1);
        assert_eq!(n_bytes(&cache), STEP * shape.n_bytes());
        fill(&mut cache, 3 * STEP);
        assert_eq!(n_bytes(&cache), 4 * STEP * shape.n_bytes());
        let fork = cache.fork(10);
        assert_eq!((fork.len(), n_bytes(&fork)), (10, STEP * shape.n_bytes()));
        cache.truncate(5);
        assert_eq!((cache.len(), n_bytes(&cache)), (5, STEP * shape.n_bytes()));
        cache.truncate(9);
        assert_eq!(cache.len(), 5);
        cache.truncate(0);
        assert_eq!(n_bytes(&cache), 0);
    }

    #[test]
    fn what_a_failed_feed_left_is_thrown_away() {
        let mut cache = Cache::new(CacheShape { n_layers: 1, n_kv_heads: 1, head_dim: 2 });
        cache.layer(0, 3).keys[0].extend([9.0; 6]);
        assert_eq!(cache.len(), 0);
        assert!(cache.layer(0, 3).keys[0].is_empty());
    }
}
