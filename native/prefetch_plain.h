// As prefetch_x86.h, by what the compiler has for it, if anything.

inline void prefetch(const char* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#else
  (void)p;
#endif
}
inline void prefetch_into(bool, const char* p) { prefetch(p); }
