// Asking the cache for what is read next. Included inside the namespace of an instruction set.

inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }

// Ahead of a stream (Reading). Statements of their own: GCC takes a function that does nothing but prefetch for one without effect
// and drops it.
inline void prefetch_into(bool first, const char* p) {
#if defined(__GNUC__)
  if (first)
    __asm__ volatile("prefetcht0 %0" : : "m"(*p));
  else
    __asm__ volatile("prefetcht1 %0" : : "m"(*p));
#else
  first ? _mm_prefetch(p, _MM_HINT_T0) : _mm_prefetch(p, _MM_HINT_T1);
#endif
}
