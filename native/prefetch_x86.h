// Asking the cache for what is read next. Included inside the namespace of an instruction set.

inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
// Into the first cache, and as a statement of its own: GCC takes a function that does nothing but prefetch for one without effect
// and drops it.
inline void prefetch_surely(const char* p) {
#if defined(__GNUC__)
  __asm__ volatile("prefetcht0 %0" : : "m"(*p));
#else
  _mm_prefetch(p, _MM_HINT_T0);
#endif
}
